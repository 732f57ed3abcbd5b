"""The processes of a mesh as one leader and its followers: rank 0 sends commands, and every rank runs them.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import torch.distributed as dist

from seektune.generate.capacity import CacheRoom
from seektune.generate.decodable import DecodableModel
from seektune.generate.pipeline import PipelineWorker
from seektune.generate.plan import EngineOptions, StepPlan, StepReport
from seektune.generate.worker import DecodeWorker
from seektune.model.head import TokenScores
from seektune.parallel.decode_stage import DecodeStage
from seektune.sequence import Batch
from seektune.signals import Interruption

T = TypeVar("T")


class MeshPart(DecodableModel, Protocol):
    """What a rank holds of a model: all of it but the experts, and the pipeline stages, of other ranks."""

    def score(self, batch: Batch) -> TokenScores:
        """Scores of the taught tokens of rows, `[B, T]`; of a pipeline on its last stage."""
        ...


MeshTask: TypeAlias = EngineOptions | StepPlan | Batch
"""Open an engine in place of the model's last one, run a step of it, or score rows."""


@dataclass(frozen=True)
class MeshCommand:
    """What all ranks do."""

    model: int
    """Index of the model."""
    task: MeshTask


class MeshRanks:
    """All ranks, and the models of which each holds a part.

    Every forward pass is part of a command that all ranks have received, so no rank decides by itself to communicate.
    """

    def __init__(self, group: dist.ProcessGroup, interruption: Interruption, pp_size: int = 1):
        """`group` has all processes and is on the hosts (gloo); a signal during a command takes effect after it."""
        self.rank = dist.get_rank()
        self.pp_size = pp_size
        self.stage_size = dist.get_world_size() // pp_size
        """Ranks of a pipeline stage, each with its own sequences."""
        self.in_step = True
        """Whether this rank has finished its last command; after an error inside one, other ranks wait in it."""
        self._group = group
        self._interruption = interruption
        self._parts: list[MeshPart] = []
        self._workers: dict[int, DecodeWorker | PipelineWorker] = {}

    def add(self, part: MeshPart) -> int:
        """Add a model, in the same order on all ranks; returns its index."""
        self._parts.append(part)
        return len(self._parts) - 1

    def lead(self, body: Callable[[], T]) -> T:
        """Run `body` on rank 0, and return its result; the other ranks `follow` until then.

        After an error inside a command they fail once this process ends.
        """
        try:
            return body()
        finally:
            if self.in_step:
                with self._interruption.deferred():
                    self._send(None)
            self._workers.clear()

    def follow(self, received: Callable[[], None] = lambda: None) -> None:
        """Run what rank 0 commands until it has finished; signals are left to it.

        `received` is called with each command: this rank does not hang.
        """
        with self._interruption.shielded():
            while (command := self._receive()) is not None:
                received()
                self._answer(command, None)
        self._workers.clear()

    def run(self, command: MeshCommand) -> list[Any]:
        """Run a command on all ranks, from rank 0; returns what each found.

        Raises:
            RuntimeError: an earlier command failed on this rank, or a rank is gone.
        """
        assert self.rank == 0, "rank 0 leads"
        if not self.in_step:
            raise RuntimeError("the processes are out of step after an error")
        reports: list[Any] = [None] * (self.stage_size * self.pp_size)
        with self._interruption.deferred():
            self.in_step = False
            self._send(command)
            self._answer(command, reports)
        return reports

    def _answer(self, command: MeshCommand, reports: list[Any] | None) -> None:
        """Run a command on this rank, and gather what all found in the `reports` of rank 0."""
        self.in_step = False
        dist.gather_object(self._obey(command), reports, dst=0, group=self._group)
        self.in_step = True

    def _obey(self, command: MeshCommand) -> StepReport | TokenScores | CacheRoom:
        part = self._parts[command.model]
        place = self.rank % self.stage_size
        match command.task:
            case EngineOptions():
                rooms = command.task.rooms
                worker = _open_worker(part, command.task, place, None if rooms is None else rooms[self.rank])
                self._workers[command.model] = worker
                return worker.room
            case StepPlan():
                return self._workers[command.model].step(command.task)
            case Batch():
                scores = part.score(command.task.share(place, self.stage_size))
                return TokenScores(scores.losses_BT.cpu(), scores.first_BT.cpu())

    def _send(self, command: MeshCommand | None) -> None:
        """Send a command to the other ranks; None ends their following."""
        dist.broadcast_object_list([command], src=0, group=self._group)

    def _receive(self) -> MeshCommand | None:
        received: list[MeshCommand | None] = [None]
        dist.broadcast_object_list(received, src=0, group=self._group)
        return received[0]


def _open_worker(
    part: MeshPart, options: EngineOptions, rank: int, measured: CacheRoom | None
) -> DecodeWorker | PipelineWorker:
    """The worker of a part; `rank` is that among the ranks of a pipeline stage."""
    if isinstance(part, DecodeStage):
        return PipelineWorker(part, options, rank, measured)
    return DecodeWorker(part, options, rank, measured)
