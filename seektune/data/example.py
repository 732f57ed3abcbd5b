"""A text as ids, and which of them are taught. Free of torch, as files of datasets are, which every recipe imports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A text as ids, and what of it is taught: tokens that the loss counts; the others are only read."""

    tokens: list[int]
    taught: list[bool]
    """Of each token."""
    name: str
    """Where it comes from, for messages."""


def continuation(prompt: list[int], ending: list[int], name: str) -> Example:
    """A sequence in which the ending is taught."""
    return Example(prompt + ending, [False] * len(prompt) + [True] * len(ending), name)
