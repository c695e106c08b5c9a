"""Raw things to features, frozen: sentence vectors, speech tokens. Running one needs no torch."""
