"""BERT (Devlin et al., 2019) as a text encoder inside a bundle: explicit attention, no pooler, no dependencies."""
