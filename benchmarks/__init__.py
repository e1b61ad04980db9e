"""Benchmarks: step.py (jaxsae beside its floor), peers.py (beside other libraries), table.py (for the README)."""
