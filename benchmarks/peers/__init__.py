"""The workers of peers.py: one long-lived process per library, in an environment of its own."""
