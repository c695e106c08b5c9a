"""The same answers? Every variant held against eager PyTorch."""
