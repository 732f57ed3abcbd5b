"""Low-rank adapters: which modules carry one, the layers, their files in PEFT's format, and merging."""
