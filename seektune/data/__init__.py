"""Text into batches: tokenizer, datasets, packing and the loader."""
