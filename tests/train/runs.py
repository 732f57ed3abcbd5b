"""A whole run of the small model in a folder, resumed where it stands; also what a killed process runs."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event

import torch

from seektune.checkpoint.shard import as_shard
from seektune.evaluate.loss import held_out_loss
from seektune.io.run_files import CHECKPOINTS
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.model import ParallelModel
from seektune.signals import Interruption
from seektune.train import guard as watchdog
from seektune.train.checkpoints import complete_checkpoints
from seektune.train.config import GuardConfig, LoggingConfig, LossConfig
from seektune.train.metrics import MetricsLog
from seektune.train.optim.config import OPTIMIZERS
from seektune.train.state_tensors import run_tensors
from seektune.train.trainer import Trainer
from tests.train.tiny_run import MadeStream, Words, made_batch, settings, small_model

QUIET = LoggingConfig(to=(), every=1000)
TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}
"""Audit events of work on files."""
LOSS = LossConfig(bias_update_speed=0.001, balance_weight=0.01)


def make_trainer(
    folder: Path,
    interruption: Interruption,
    dtype: torch.dtype = torch.float32,
    master: str = "fp32",
    stream: MadeStream | None = None,
    guard: GuardConfig | None = None,
    every: int | None = 2,
    asynchronous: bool = True,
    model: DeepseekV4ForCausalLM | None = None,
    loss: LossConfig = LOSS,
    optimizer: str = "adamw",
) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    spread = ParallelModel.alone(small_model(dtype) if model is None else model)
    held_out = partial(held_out_loss, spread, [made_batch(1000)], {})
    wanted = settings(every=every, validate_every=3, loss=loss, guard=guard, asynchronous=asynchronous)
    wanted = replace(wanted, optimizer=OPTIMIZERS[optimizer](name=optimizer, lr=1e-2, master=master))
    return Trainer(spread, Words(), MadeStream() if stream is None else stream, wanted, folder, held_out, interruption)


def go(folder: Path, steps: int, change: Callable[[Trainer], None] = lambda trainer: None, **changes) -> Trainer:
    """Start anew, or resume from the newest checkpoint, and train until `steps` steps are done."""
    with Interruption() as interruption:
        trainer = make_trainer(folder, interruption, **changes)
        if checkpoints := complete_checkpoints(folder / CHECKPOINTS):
            trainer.resume(checkpoints[-1])
        change(trainer)
        with MetricsLog(folder, steps, QUIET, trainer.step, trainer.log_state) as log:
            trainer.fit(steps, log)
    return trainer


def go_killed(folder: Path, steps: int, threads: int, at: int) -> None:
    """As `go`, but killed when it does something to a file of the folder for the `at`-th time."""
    times = count(1)

    def kill(event: str, given: tuple[object, ...]) -> None:
        if event in TOUCHES and str(given[0]).startswith(str(folder)) and next(times) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    torch.set_num_threads(threads)  # sums depend on it
    go(folder, steps)


def end_by_two_signals(folder: Path) -> None:
    """A run that gets SIGTERM in a step, delivered twice, and SIGINT before the step is over."""

    class Deaf(MadeStream):
        def next_step(self):
            if self.drawn == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("the second request did not end the process")
            return super().next_step()

    go(folder, 5, stream=Deaf())


def hang(folder: Path) -> None:
    """A run whose data never comes, while its clock, which stood, shows a minute more."""
    now = [0.0]

    class Hanging(MadeStream):
        def next_step(self):
            if self.drawn == 1:
                now[0] += 60
                Event().wait()
            return super().next_step()

    watchdog.monotonic = lambda: now[0]
    go(folder, 5, stream=Hanging(), guard=GuardConfig(step_timeout=1.0))


def same_state(a: Trainer, b: Trainer) -> bool:
    left, right = run_tensors(a.model, a.optimizer), run_tensors(b.model, b.optimizer)
    return left.keys() == right.keys() and all(
        torch.equal(as_shard(left[name]).tensor, as_shard(right[name]).tensor) for name in left
    )
