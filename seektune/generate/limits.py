"""Sizes of decoding that several packages share; imports nothing."""

PREFIX_CACHE = 2 * 10**9
"""Bytes of each process and model for a prefix cache."""
CHUNK = 4096
"""Tokens of one prefill forward, over all rows."""
