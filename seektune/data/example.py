"""A tokenized example; does not import torch, as every recipe imports the datasets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """Token ids, and which of them are taught (counted by the loss)."""

    tokens: list[int]
    taught: list[bool]
    """Whether the loss counts it, for each token."""
    name: str
    """Its source, for messages."""


def continuation(prompt: list[int], ending: list[int], name: str) -> Example:
    """An example in which only the ending is taught."""
    return Example(prompt + ending, [False] * len(prompt) + [True] * len(ending), name)
