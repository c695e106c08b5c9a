"""The same answers? One judge of that, and one table of limits, for exports, gates, parity and benchmarks."""
