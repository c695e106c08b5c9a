"""A model repository for NVIDIA Triton: a model for each bucket, and a router that takes unpadded items and answers."""
