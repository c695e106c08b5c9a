"""Baselines of a recipe: linear and recurrent models of its inputs, splits and labels, measured as its bundles are."""
