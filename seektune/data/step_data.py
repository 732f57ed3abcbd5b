"""The data of one optimizer step, as one process reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from seektune.sequence import WEIGHTS, Batch


@dataclass(frozen=True)
class Share:
    """The part of a step that a data-parallel group of processes reads: every `size`-th micro-batch from `rank` on."""

    rank: int = 0
    size: int = 1


ALL = Share()
"""The whole step."""


@dataclass(frozen=True)
class StepData:
    """The micro-batches of a process, and the numbers of the whole step, which all processes know."""

    batches: Sequence[Batch]
    """Micro-batches of this process."""
    taught: int
    """Tokens that the loss counts in the whole step."""
    tokens: int
    """Tokens of the whole step, without padding."""
    micro_batches: int
    """Micro-batches of the whole step."""
    weight: float | None = None
    """Sum of the weights of the counted tokens of the whole step; None without weights."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Bad rows and overlong examples of streams so far, by name; empty for prepared rows, which are counted before."""
    values: Mapping[str, float] = field(default_factory=dict)
    """What is logged of the data, by name."""
    examples: int | None = None
    """Examples of the whole step, if the loader knows their number."""

    @classmethod
    def of(cls, batches: Sequence[Batch], share: Share = ALL) -> "StepData":
        """A share of the micro-batches of a whole step, all of which are in memory."""
        own = batches[share.rank :: share.size]
        assert len(own) * share.size == len(batches), "the batch size was checked against the mesh"
        tokens = sum(int((batch.documents != 0).sum()) for batch in batches)
        weighted = any(WEIGHTS in batch.columns for batch in batches)
        weight = sum(batch.weight() for batch in batches) if weighted else None
        return cls(own, sum(batch.taught() for batch in batches), tokens, len(batches), weight)
