"""LoRA: target modules, adapter layers, adapter files in PEFT's format, and merging."""
