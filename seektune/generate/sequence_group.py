"""Sequences that step together: all of an engine, or those of one of a pipeline's groups."""

from dataclasses import dataclass, field

from seektune.generate.capacity import BatchRows
from seektune.generate.plan import Admission
from seektune.generate.request import Token


@dataclass(eq=False)
class SequenceGroup:
    """Sequences that step together, and what their next plan says of them."""

    running: dict[int, Admission] = field(default_factory=dict)
    retired: list[int] = field(default_factory=list)
    sampled: list[Token] = field(default_factory=list)
    decode: bool = False
    prefill: bool = False

    def batch_on(self, rank: int) -> BatchRows:
        """Those that a rank decodes together."""
        lengths = [each.request.longest for each in self.running.values() if each.rank == rank]
        return BatchRows(len(lengths), max(lengths, default=0))
