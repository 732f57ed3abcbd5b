"""No rank waits for another without end: after a signal, and after an error inside a command."""

import os
import signal
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from seektune.checkpoint import Ranks
from seektune.generate.mesh import DecodeMesh
from seektune.generate.ranks import MeshCommand, MeshRanks
from seektune.parallel.dims import ParallelDims
from seektune.parallel.mesh import Mesh
from seektune.parallel.process_group import IDLE_TIMEOUT
from seektune.run.decoding import run_decoding
from seektune.signals import Interrupted, Interruption

from ..train.tiny_run import made_batch
from .workers import WorkersFailed, run_workers

pytestmark = pytest.mark.slow
NO_MEMORY = "no memory for scores"


class SignalledRanks(MeshRanks):
    """A signal arrives when the others are to stop following."""

    def _send(self, command: MeshCommand | None) -> None:
        if command is None:
            os.kill(os.getpid(), signal.SIGTERM)
        super()._send(command)


class PoorPart:
    """A model whose forward runs out of memory on rank 0."""

    def score(self, _: Any) -> Any:
        if dist.get_rank() == 0:
            raise RuntimeError(NO_MEMORY)
        return SimpleNamespace(losses_BT=torch.zeros(1), first_BT=torch.zeros(1))


def signalled_at_the_end() -> str:
    """In a worker."""
    with Interruption(worker=True) as interruption:
        ranks = SignalledRanks(dist.new_group(), interruption)
        if ranks.rank > 0:
            ranks.follow()
            return "followed"
        with pytest.raises(Interrupted):
            ranks.lead(lambda: None)
        return "interrupted"


def time_limits() -> tuple[timedelta, timedelta]:
    """In a worker: how long processes wait for commands, and for decisions."""
    axes = Mesh.of(ParallelDims(2, 1, 2, 1, 1, 1), torch.device("cpu")).axes
    assert axes is not None
    host = torch.device("cpu")
    commands = axes.commands._get_backend(host).options._timeout
    return commands, axes.control._get_backend(host).options._timeout


def test_processes_wait_for_commands_as_long_as_a_reward_takes() -> None:
    for commands, control in run_workers(2, time_limits):
        assert commands == IDLE_TIMEOUT > timedelta(days=1) > control


def fails_in_training() -> None:
    """In a worker."""
    control = dist.new_group()
    axes = SimpleNamespace(commands=dist.new_group())
    mesh = SimpleNamespace(axes=axes, ranks=Ranks(control), dims=SimpleNamespace(pp_size=1))
    model: Any = SimpleNamespace(mesh=mesh, decodable=PoorPart)
    run: Any = SimpleNamespace(interruption=Interruption(worker=True))

    def body(decoding: Any) -> None:
        assert isinstance(decoding, DecodeMesh)
        with pytest.raises(RuntimeError, match=NO_MEMORY):
            decoding.score(made_batch(0))
        decoding.score(made_batch(0))

    run_decoding(run, model, body)


def test_a_signal_after_the_last_command_lets_the_others_stop() -> None:
    assert run_workers(2, signalled_at_the_end) == ["interrupted", "followed"]


def test_after_an_error_inside_a_command_no_other_is_run_and_all_ranks_fail() -> None:
    with pytest.raises(WorkersFailed) as failed:
        run_workers(2, fails_in_training)
    _, first, second = str(failed.value).split("--- rank ")
    assert first.rstrip().endswith("RuntimeError: the processes are out of step after an error")
    assert "in follow" in second
    assert "RuntimeError: " in second
