"""The prompt of a training row whose answers are sampled and rewarded, with the row's own responses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seektune.data.example import Example


@dataclass(frozen=True)
class RewardedPrompt:
    """A prompt, and the responses of its row."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    """In order; with what is between them left out."""
    dataset: int = 0
    """The place of its dataset among all."""

    @classmethod
    def of(cls, example: Example, dataset: int = 0) -> "RewardedPrompt":
        """The taught responses of a training row, and what is before the first.

        Raises:
            ValueError: the row has no prompt.
        """
        starts, stops = _spans(example.taught)
        if starts[0] == 0:
            raise ValueError(f"{example.name}: objective.name grpo and opd need rows with a prompt before the response")
        tokens = [int(token) for token in example.tokens]
        responses = tuple(tuple(tokens[start:stop]) for start, stop in zip(starts, stops, strict=True))
        return cls(tuple(tokens[: starts[0]]), responses, dataset)


def _spans(taught: Sequence[bool] | np.ndarray) -> tuple[list[int], list[int]]:
    """Where runs of taught tokens begin and end."""
    edges = np.diff(np.concatenate([[False], np.asarray(taught, dtype=bool), [False]]).astype(np.int8))
    return np.flatnonzero(edges > 0).tolist(), np.flatnonzero(edges < 0).tolist()
