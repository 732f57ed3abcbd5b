"""The datasets that a recipe can name, each from its rows to tokenized examples."""
