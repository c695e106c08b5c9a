"""The experiments of the papers: a recipe over a grid of seeds, rates or folds, and the table over them."""
