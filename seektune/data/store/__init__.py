"""Prepared examples: memory-mapped Arrow shards with an index, made once and read by every process."""
