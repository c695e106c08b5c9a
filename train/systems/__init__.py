"""One folder per family of systems: settings, protocol, losses. Each announces its `RECIPES`."""
