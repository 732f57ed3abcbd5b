"""Defaults of decoding that several commands share; imports nothing."""

PREFIX_CACHE = 10**9
"""Bytes of each process and model for a prefix cache."""
