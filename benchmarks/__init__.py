"""Suites at published sizes: against peers, against the machine's own limit, and on a GPU."""
