"""The workers of compare_peers.py: one long-lived process per library, in an environment of its own."""
