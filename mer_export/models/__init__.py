"""One folder per system: config and tensor contract (without torch), network, weight map."""
