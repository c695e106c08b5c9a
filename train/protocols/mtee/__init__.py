"""Training of MTEE and its baselines."""
