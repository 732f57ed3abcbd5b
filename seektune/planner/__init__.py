"""Foresight without a GPU: what fits, where, and how fast."""
