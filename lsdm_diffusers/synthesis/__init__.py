"""Labelled sets of synthetic slices: a recipe, the plan of each row, shards, and the workers that write them."""
