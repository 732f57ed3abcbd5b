"""The datasets of recipes: from rows to tokenized examples."""
