"""One module per file format; each turns files into samples and knows nothing of models."""
