"""Training: presets, the fit loop, and one protocol per system (losses, curriculum, published evaluation)."""
