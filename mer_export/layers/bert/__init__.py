"""BERT and RoBERTa (Devlin et al., 2019; Liu et al., 2019) as text encoders inside a bundle: explicit attention, no
pooler, no dependencies."""
