"""Reasons for which completions end early, and the messages that users get."""

from collections.abc import Mapping

from seektune.generate.grammar import TOO_EXPENSIVE

NO_MEMORY = (
    "no memory was left for the KV cache of a sequence of this length; "
    "shorten it, run fewer sequences together, or lower --gpu-memory-utilization"
)
FAILED_ENDS: Mapping[str, str] = {"error": TOO_EXPENSIVE, "memory": NO_MEMORY}
"""By `Token.end`."""
