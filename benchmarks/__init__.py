"""Benchmarks: step.py, e2e.py (jaxsae beside its floor), peers.py (beside other libraries), table.py (README)."""
