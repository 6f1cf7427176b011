"""Weight-only quantisation of the language model, in memory and in files."""
