"""Parallelism: FSDP2, expert, pipeline and context parallelism, applied to the model from outside."""
