"""Requests to the decode engine, and the tokens that it returns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from seektune.generate.sampling_params import DEFAULT, Sampling

if TYPE_CHECKING:
    from seektune.generate.grammar import Grammar


@dataclass
class DraftCounts:
    """Counts of verified draft tokens, by slot: how many tokens after the last known one."""

    tried: Counter[int] = field(default_factory=Counter)
    """Drafts that were verified; a draft after a rejected one is not."""
    passed: Counter[int] = field(default_factory=Counter)
    """Those of them that were accepted."""

    def record(self, slot: int, accepted: bool) -> None:
        """Count one verified draft."""
        self.tried[slot] += 1
        self.passed[slot] += accepted

    def add(self, other: "DraftCounts") -> None:
        """Add the counts of another decoding."""
        self.tried += other.tried
        self.passed += other.passed

    def of_whole_steps(self, size: int) -> "DraftCounts":
        """The counts of one request, with drafts of `size` tokens, without the step that the end of its text cut off.

        Of that step, some drafts were accepted and the rest never verified.
        """
        cut = next((slot for slot in range(size - 1) if self.tried[slot + 1] < self.passed[slot]), None)
        if cut is None:
            return self
        seen = Counter(range(cut + 1))
        return DraftCounts(self.tried - seen, self.passed - seen)

    @property
    def made(self) -> int:
        """Verified drafts."""
        return self.tried.total()

    @property
    def accepted(self) -> int:
        """Accepted drafts."""
        return self.passed.total()

    @property
    def rate(self) -> float:
        """Acceptance rate; 0 without drafts."""
        return self.accepted / max(self.made, 1)


@dataclass(frozen=True)
class Request:
    """A prompt to complete."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = DEFAULT
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the completion; they are part of it."""
    stops: tuple[str, ...] = ()
    """Strings before which the completion ends; handled by `detokenize`, not by the engine."""
    seed: int = 0
    alternatives: int = 0
    """Number of most likely tokens to return with each token."""
    echo: bool = False
    """Whether the first token also brings the log-probabilities of the prompt's tokens."""
    drafts: DraftCounts | None = None
    """Receives the counts of this request's drafts."""
    logprob_temperature: float = 1.0
    """Divides the logits of the log-probabilities that tokens come with."""
    grammar: "Grammar | None" = None
    """What the completion follows; at its end it allows EOS only."""

    @property
    def longest(self) -> int:
        """Maximum number of tokens, prompt included."""
        return len(self.prompt) + self.max_new_tokens

    def check(self, vocab_size: int) -> None:
        """Check the request.

        Raises:
            ValueError: it is invalid.
        """
        if not self.prompt:
            raise ValueError("a prompt needs at least one token; text prompts begin with BOS")
        if min(self.prompt) < 0 or max(self.prompt) >= vocab_size:
            raise ValueError(f"a prompt's ids must lie in the vocabulary, 0 to {vocab_size - 1}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}")


@dataclass(frozen=True)
class Token:
    """A generated token."""

    request: int
    """Number of its request, from 0."""
    id: int
    logprob: float
    """By the model's own distribution: before temperature, penalty and truncation."""
    alternatives: list[tuple[int, float]]
    """The most likely tokens with their log-probabilities, best first."""
    end: str | None
    """`stop` or `length` if the completion ends with it; or why it cannot go on, of `FAILED_ENDS`."""
    prompt: tuple["Token", ...] = ()
    """With the first token of a request with `echo`, the tokens of its prompt after the first."""
    cached: int = 0
    """With the first token, how many tokens of its prompt were taken from the prefix cache."""
