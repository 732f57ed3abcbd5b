"""What is asked of a model, and what it answers with."""

from collections.abc import Sequence
from dataclasses import dataclass

from seektune.generate.sampling_params import DEFAULT, Sampling


@dataclass(frozen=True)
class Request:
    """A text to be continued."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = DEFAULT
    stop_ids: frozenset[int] = frozenset()
    """Tokens after which the text ends; they are part of it."""
    stops: tuple[str, ...] = ()
    """Strings before which the text ends: `speech` sees them, tokens alone do not."""
    seed: int = 0
    alternatives: int = 0
    """How many of the likeliest tokens are named beside each."""

    @property
    def longest(self) -> int:
        """Tokens that the text may come to have, prompt included."""
        return len(self.prompt) + self.max_new_tokens

    def check(self, vocab_size: int) -> None:
        """Refuse what cannot be continued.

        Raises:
            ValueError: it cannot.
        """
        if not self.prompt:
            raise ValueError("a prompt needs at least one token; texts begin with BOS")
        if min(self.prompt) < 0 or max(self.prompt) >= vocab_size:
            raise ValueError(f"a prompt's ids must lie in the vocabulary, 0 to {vocab_size - 1}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}")


@dataclass(frozen=True)
class Token:
    """A token that a text grew by."""

    request: int
    """Which of the requests, from 0."""
    id: int
    logprob: float
    """By the model's own distribution: before temperature, penalty and cuts."""
    alternatives: list[tuple[int, float]]
    """The likeliest tokens with their log-probabilities, best first."""
    end: str | None
    """`stop` or `length` where the text ends with it."""


@dataclass
class Drafts:
    """How often the MTP block guessed right."""

    made: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """Share that was accepted; 0 where none was made."""
        return self.accepted / max(self.made, 1)
