"""EMT-DLFR training for missing features, and its baselines TFR-Net and MulT."""
