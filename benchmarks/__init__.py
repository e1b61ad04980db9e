"""Benchmarks: step, e2e, topk (jaxsae beside its floor), compare_peers (beside other libraries), collectives, table."""
