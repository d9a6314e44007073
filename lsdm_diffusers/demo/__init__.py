"""The page: draw a semantic map, generate CT slices from it."""
