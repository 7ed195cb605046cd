"""Products of a few rows with a large weight, as decode steps need them."""
