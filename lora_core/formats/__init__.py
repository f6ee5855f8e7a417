"""How others keep weights: as pickles, and under the names that vision transformers had before transformers 5."""
