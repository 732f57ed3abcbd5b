"""Generation: sampling, batched decoding with KV caches, and detokenization."""
