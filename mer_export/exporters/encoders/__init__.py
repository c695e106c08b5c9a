"""Encoders as folders that run without PyTorch."""
