"""Samples, the one collate function, readers of the authors' files, converters and synthetic corpora."""
