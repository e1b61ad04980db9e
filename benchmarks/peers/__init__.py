"""The workers of compare_peers.py, lm.py and quality.py: a process per library, in an environment of its own."""
