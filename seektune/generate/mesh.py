"""A model on the processes of a mesh, as rank 0 decodes and scores with it.

The ranks of a pipeline stage have the same layers, but own sequences; its experts may be spread over them.
Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from seektune.generate.capacity import CacheRoom
from seektune.generate.plan import EngineOptions, StepPlan, StepReport
from seektune.generate.ranks import MeshCommand, MeshPart, MeshRanks, MeshTask
from seektune.model.config import DeepseekV4Config
from seektune.model.head import TokenScores
from seektune.sequence import Batch

T = TypeVar("T")
RunPlan: TypeAlias = Callable[[StepPlan], list[StepReport]]
"""Runs a step on all ranks; returns their reports."""


@dataclass(frozen=True)
class OpenEngine:
    """An engine on all ranks that decode."""

    run: RunPlan
    rooms: Sequence[CacheRoom]
    """The memory of each rank for caches."""
    stages: int = 1
    """Pipeline stages, each on as many ranks as every other."""


class DecodeMesh:
    """A model on all processes of the default process group, which step together.

    Rank 0 decodes and scores inside `lead`, while the others `follow`.
    """

    def __init__(self, part: MeshPart, ranks: MeshRanks):
        """From what this rank holds; every rank makes its meshes in the same order."""
        self.part = part
        self.ranks = ranks
        self._index = ranks.add(part)

    @property
    def config(self) -> DeepseekV4Config:
        """The model's config."""
        return self.part.config

    def lead(self, body: Callable[[], T]) -> T:
        """Run `body` on rank 0, and return its result; the other ranks `follow` until then."""
        return self.ranks.lead(body)

    def follow(self, received: Callable[[], None] = lambda: None) -> None:
        """As `MeshRanks.follow`."""
        self.ranks.follow(received)

    def open_engine(self, options: EngineOptions) -> "OpenEngine":
        """Open an engine on all ranks; the one before is dropped.

        Raises:
            ValueError: drafts are asked of pipeline stages.
        """
        if options.speculative and self.ranks.pp_size > 1:
            raise ValueError("speculative decoding does not work with pipeline stages; leave one of them out")
        return OpenEngine(self._run, self._run(options), self.ranks.pp_size)

    def score(self, batch: Batch) -> TokenScores:
        """Scores of the taught tokens of rows, `[B, T]`, each computed by one of the ranks."""
        rows = len(batch.tokens)
        count = self.ranks.stage_size
        found: list[TokenScores] = self._run(batch.padded(rows=-(-rows // count) * count))
        scores = TokenScores.joined(found[-count:])  # of the last pipeline stage
        return TokenScores(scores.losses_BT[:rows], scores.first_BT[:rows])

    def _run(self, task: MeshTask) -> list[Any]:
        return self.ranks.run(MeshCommand(self._index, task))
