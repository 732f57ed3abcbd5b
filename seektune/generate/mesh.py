"""A model on the processes of a mesh, as rank 0 decodes and scores with it.

Each rank has its own sequences and KV caches; the experts may be spread over the ranks. Shapes: B rows, T tokens.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch

from seektune.generate.plan import EngineOptions, StepPlan, StepReport
from seektune.generate.ranks import MeshCommand, MeshPart, MeshRanks, MeshTask
from seektune.model.config import DeepseekV4Config
from seektune.model.head import TokenScores
from seektune.sequence import Batch

T = TypeVar("T")
RunPlan: TypeAlias = Callable[[StepPlan], list[StepReport]]
"""Runs a step on all ranks; returns their reports."""


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

    def open_engine(self, options: EngineOptions) -> RunPlan:
        """Open an engine on all ranks; the one before is dropped."""
        self._run(options)
        return self._run

    def score(self, batch: Batch) -> TokenScores:
        """Scores of the taught tokens of rows, `[B, T]`, each computed by one of the ranks."""
        rows = len(batch.tokens)
        count = self.ranks.count
        found: list[TokenScores] = self._run(batch.padded(rows=-(-rows // count) * count))
        losses = torch.cat([part.losses_BT for part in found])
        first = torch.cat([part.first_BT for part in found])
        return TokenScores(losses[:rows], first[:rows])

    def _run(self, task: MeshTask) -> list[Any]:
        return self.ranks.run(MeshCommand(self._index, task))
