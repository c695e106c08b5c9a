"""How fast, on what, against what: bench, start-up, cost, plans of buckets, tuning, regressions."""
