"""A tokenized example; imports neither torch nor numpy, as every recipe imports the datasets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """Token ids, and which of them are taught (counted by the loss): lists, or arrays of the prepared ones."""

    tokens: "Sequence[int] | NDArray[np.uint32]"
    taught: "Sequence[bool] | NDArray[np.bool_]"
    """Whether the loss counts it, for each token."""
    name: str
    """Its source, for messages."""
    weight: float = 1.0
    """Factor of the losses of its tokens; examples in memory only, prepared ones have 1."""


def continuation(prompt: list[int], ending: list[int], name: str) -> Example:
    """An example in which only the ending is taught."""
    return Example(prompt + ending, [False] * len(prompt) + [True] * len(ending), name)
