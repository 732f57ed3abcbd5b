"""Data: tokenizer, datasets, chat format, packing and the loader."""
