"""What containers need to serve a bundle: an image that is described, and a manifest for KServe. Needs no torch."""
