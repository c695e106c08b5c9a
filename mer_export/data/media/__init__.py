"""Recordings and pictures as arrays."""
