"""Serving bundles over HTTP: Open Inference Protocol v2, dialogues as JSON, a page.

Needs the extra `serve`, and no torch.
"""
