"""Decoding and scoring on the processes of a mesh: rank 0 leads, the other ranks follow its commands.

Each rank has its own sequences and KV caches; the experts may be spread over the ranks. Shapes: B rows, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist

from seektune.generate.plan import EngineOptions, StepPlan, StepReport
from seektune.generate.worker import DecodeWorker
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.head import TokenScores
from seektune.sequence import Batch
from seektune.signals import Interruption

T = TypeVar("T")
RunPlan: TypeAlias = Callable[[StepPlan], list[StepReport]]
"""Runs a step on all ranks; returns their reports."""
IDLE_TIMEOUT = timedelta(days=365)
"""How long ranks wait for a command, which may be the next message of a chat. A rank that dies is noticed at once."""


@dataclass(frozen=True)
class Finish:
    """The command that ends following."""


Command: TypeAlias = EngineOptions | StepPlan | Batch | Finish
"""Open an engine in place of the one before, run a step of it, score rows, or finish."""


class DecodeMesh:
    """A model on all processes of the default process group; they step together.

    Rank 0 decodes and scores inside `lead`, while the others `follow`. Every forward pass is part of a command that all
    ranks have received, so no rank decides by itself to communicate.
    """

    def __init__(self, model: DeepseekV4ForCausalLM, group: dist.ProcessGroup, interruption: Interruption):
        """From what this rank holds.

        Args:
            model: with all weights but the experts of other ranks.
            group: all processes, for commands and reports (gloo).
            interruption: a signal that arrives during a command takes effect after it.
        """
        self.model = model
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        self._interruption = interruption
        self._group = group
        self._worker: DecodeWorker | None = None

    @property
    def config(self) -> DeepseekV4Config:
        """The model's config."""
        return self.model.config

    def lead(self, body: Callable[[], T]) -> T:
        """Run `body` on rank 0, and return its result; the other ranks `follow` until then."""
        try:
            return body()
        finally:
            self._worker = None
            self._send(Finish())

    def follow(self, received: Callable[[], None] = lambda: None) -> None:
        """Run what rank 0 commands until it has finished; signals are left to it.

        `received` is called with each command: this rank does not hang.
        """
        with self._interruption.shielded():
            while not isinstance(command := self._receive(), Finish):
                received()
                dist.gather_object(self._obey(command), None, dst=0, group=self._group)
        self._worker = None

    def open_engine(self, options: EngineOptions) -> RunPlan:
        """Open an engine on all ranks; the one before is dropped.

        Raises:
            ValueError: drafts are asked for.
        """
        if options.speculative:
            raise ValueError("speculative decoding runs on one process only; leave --speculative out")
        self._run(options)
        return self._run

    def score(self, batch: Batch) -> TokenScores:
        """Scores of the taught tokens of rows, `[B, T]`, each computed by one of the ranks."""
        rows = len(batch.tokens)
        found = self._run(batch.padded(rows=-(-rows // self.count) * self.count))
        losses = torch.cat([part.losses_BT for part in found])
        first = torch.cat([part.first_BT for part in found])
        return TokenScores(losses[:rows], first[:rows])

    def _run(self, command: Command) -> list[Any]:
        """Run a command on all ranks; returns what each found."""
        assert self.rank == 0, "rank 0 leads"
        reports: list[Any] = [None] * self.count
        with self._interruption.deferred():
            self._send(command)
            dist.gather_object(self._obey(command), reports, dst=0, group=self._group)
        return reports

    def _obey(self, command: Command) -> StepReport | TokenScores | None:
        match command:
            case EngineOptions():
                self._worker = DecodeWorker(self.model, command, self.rank)
                return None
            case StepPlan():
                assert self._worker is not None, "an engine is open"
                return self._worker.step(command)
            case Batch():
                scores = self.model.score(command.share(self.rank, self.count))
                return TokenScores(scores.losses_BT.cpu(), scores.first_BT.cpu())
            case Finish():
                return None

    def _send(self, command: Command) -> None:
        dist.broadcast_object_list([command], src=0, group=self._group)

    def _receive(self) -> Command:
        received: list[Any] = [None]
        dist.broadcast_object_list(received, src=0, group=self._group)
        command: Command = received[0]
        return command


def command_group() -> dist.ProcessGroup:
    """A group of all processes for the commands of a user, between which any time may pass. Collective."""
    return dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)
