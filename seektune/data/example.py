"""A tokenized example; imports neither torch nor numpy, as every recipe imports the datasets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["chosen", "rejected", "mismatched"]
"""Of an answer: better or worse than another to its prompt, or made for another prompt."""


@dataclass(frozen=True)
class AnswerPart:
    """A prompt with an answer, which is one of several documents of an example."""

    role: Role
    tokens: int
    """Their number, the prompt's included."""


@dataclass(frozen=True)
class Example:
    """Token ids, and which of them are taught (counted by the loss): lists, or arrays of the prepared ones."""

    tokens: "Sequence[int] | NDArray[np.uint32]"
    taught: "Sequence[bool] | NDArray[np.bool_]"
    """Whether the loss counts it, for each token."""
    name: str
    """Its source, for messages."""
    weight: float = 1.0
    """Factor of the losses of its tokens; of a labelled response, 1 if it is good and -1 if it is bad."""
    answers: tuple[AnswerPart, ...] = ()
    """The documents that it consists of, in order, if objectives compare them; empty for one document."""


def continuation(prompt: list[int], ending: list[int], name: str) -> Example:
    """An example in which only the ending is taught."""
    return Example(prompt + ending, [False] * len(prompt) + [True] * len(ending), name)
