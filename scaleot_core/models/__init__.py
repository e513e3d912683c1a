"""Where the parts of an LLM are: one table row for each model family, and the loading of a model from a directory."""
