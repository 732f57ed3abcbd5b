"""Whole runs of the small model on a mesh of processes, to which things happen, as workers call them."""

import os
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from seektune.checkpoint import as_shard
from seektune.checkpoint.formats import FORMATS
from seektune.data.step_data import Share, StepData
from seektune.evaluate.loss import held_out_loss
from seektune.io.run_files import CHECKPOINTS
from seektune.lora.build import adapter_injector
from seektune.lora.config import LoraConfig
from seektune.model.initialize import initialize
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import make_dims
from seektune.parallel.lora import init_adapters
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.parallelize import parallelize
from seektune.parallel.placement import local
from seektune.signals import Interruption
from seektune.train.checkpoints import complete_checkpoints
from seektune.train.config import GuardConfig, LossConfig
from seektune.train.metrics import MetricsLog
from seektune.train.optim.config import OPTIMIZERS, AdamWConfig
from seektune.train.run_log import SilentLog
from seektune.train.state_tensors import run_tensors
from seektune.train.trainer import Trainer
from tests.train.tiny_run import CONFIG, Words, made_batch, settings

from ..train.runs import QUIET
from .mesh_law import Pieces, portable

LOSS = LossConfig(bias_update_speed=0.001, balance_weight=0.01)
ADAPTED_LOSS = LossConfig(balance_weight=0.01)
RARE = CONFIG.vocab_size - 1
"""A token that no row holds, unless a test puts it there."""


@dataclass(frozen=True)
class Plot:
    """A run, and what happens to it as it draws a step's data."""

    parallel: Mapping[str, Any]
    steps: int = 6
    dtype: torch.dtype = torch.float32
    master: str = "fp32"
    optimizer: str = "adamw"
    every: int | None = 2
    asynchronous: bool = True
    guard: GuardConfig = field(default_factory=GuardConfig)
    happenings: Mapping[int, str] = field(default_factory=dict)
    lora: LoraConfig = field(default_factory=LoraConfig)
    """With targets, quantized weights are frozen and adapters trained."""


@dataclass(frozen=True)
class End:
    """How a run ended on one process."""

    error: str
    step: int
    drawn: int
    state: Pieces


class Stream:
    """Four micro-batches a step, of rows of very different lengths, and something may happen as they are drawn."""

    def __init__(self, happenings: Mapping[int, str], model: ParallelModel):
        self.drawn, self._happenings, self._model = 0, dict(happenings), model
        self._broken: dict[str, Tensor] = {}
        self.settle: Callable[[], None] = lambda: None
        """Waits for what is being saved."""

    def next_step(self) -> StepData:
        self.drawn += 1
        batches = [made_batch(4 * self.drawn + i, length=(150, 40, 12, 9)[i], taught=3) for i in range(4)]
        for batch in batches:
            batch.tokens.clamp_(max=RARE - 1)
            batch.labels.clamp_(max=RARE - 1)
        for name, before in self._broken.items():
            as_shard(self._model.shards()[name]).tensor.copy_(before)
        self._broken = {}
        what, rank = self._happenings.get(self.drawn, ""), self._model.mesh.rank
        if what == "SIGTERM to rank 1" and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "many signals":
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
        if what == "NaN loss":
            self._break("embed.weight", torch.nan)
            batches[1].tokens[0, 3] = RARE
        if what == "spike":
            self._break("norm.weight", 300.0)
        if what == "full disk" and rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
        if what == "room":
            self.settle()
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        dims = self._model.mesh.dims
        return StepData.of(batches, Share(self._model.mesh.coords.dp, dims.data_size))

    def _break(self, name: str, factor: float) -> None:
        if (piece := self._model.shards().get(name)) is None:
            return
        self._broken[name] = piece.tensor.clone()
        first = RARE - piece.offsets[0] if name == "embed.weight" else 0
        if 0 <= first < len(piece.tensor):
            piece.tensor[first:].mul_(factor)

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.drawn = state["drawn"]


def run(folder: Path, plot: Plot) -> End:
    """Start anew or resume from the newest checkpoint; everything that goes wrong is told."""
    parallel = ParallelConfig.model_validate(plot.parallel)
    world = dist.get_world_size() if dist.is_initialized() else 1
    mesh = Mesh.of(make_dims(parallel, world, CONFIG), torch.device("cpu"))
    torch.manual_seed(0)
    model = _built(plot, mesh, parallel)
    stream, loss = Stream(plot.happenings, model), ADAPTED_LOSS if plot.lora.targets else LOSS
    wanted = settings(every=plot.every, validate_every=3, loss=loss, guard=plot.guard, asynchronous=plot.asynchronous)
    moving = OPTIMIZERS[plot.optimizer](name=plot.optimizer, lr=1e-2, master=plot.master)
    if plot.lora.targets:
        # behind a B of zero an adapter's first gradients are hardly more than rounding, which must not become updates
        moving = AdamWConfig(lr=1e-3, eps=1e-5)
    wanted = replace(wanted, optimizer=moving)
    held_out = partial(held_out_loss, model, [made_batch(1000), made_batch(1001, rows=1)], {})
    error = ""
    with Interruption(worker=world > 1) as interruption:
        trainer = Trainer(model, Words(), stream, wanted, folder, held_out, interruption)
        stream.settle = trainer._checkpoints.settle
        if checkpoints := mesh.ranks.first(lambda: complete_checkpoints(folder / CHECKPOINTS)):
            trainer.resume(checkpoints[-1])
        if mesh.rank == 1 and "NaN gradient" in plot.happenings.values():
            _spoil_gradients(model, stream, plot.happenings)
        try:
            with _log(folder, plot.steps, trainer) as log:
                trainer.fit(plot.steps, log)
        except (Exception, KeyboardInterrupt) as caught:
            error = f"{type(caught).__name__}: {caught}"
        if not error:
            trainer.export(folder / "model")
    state = {name: portable(as_shard(held)) for name, held in run_tensors(model, trainer.optimizer).items()}
    state = {name: piece for name, piece in state.items() if not name.startswith("random.")}
    return End(error, trainer.step, stream.drawn, state)


def _built(plot: Plot, mesh: Mesh, parallel: ParallelConfig) -> ParallelModel:
    if not plot.lora.targets:
        model = parallelize(CONFIG, mesh, parallel, plot.dtype)
        initialize(model.shards(), CONFIG)
        return model
    config = CONFIG.replace(moe_intermediate_size=32)
    prepare = adapter_injector(config, plot.lora, True, FORMATS["released"].kind)
    model = parallelize(config, mesh, parallel, plot.dtype, "plain", prepare, plot.lora.dropout > 0)
    initialize(model.base_shards(), config)
    init_adapters(model, 0)
    torch.manual_seed(mesh.rank)
    return model


def _spoil_gradients(model: ParallelModel, stream: Stream, happenings: Mapping[int, str]) -> None:
    train = model.train

    def spoilt(*arguments: Any) -> Any:
        outcome = train(*arguments)
        if happenings.get(stream.drawn) == "NaN gradient":
            parameter = next(p for name, p in model.named_parameters() if name.endswith("attn.wkv.weight"))
            local(parameter.grad).fill_(torch.inf)
        return outcome

    model.train = spoilt  # type: ignore[method-assign]


def _log(folder: Path, steps: int, trainer: Trainer) -> MetricsLog | SilentLog:
    ranks = trainer.model.mesh.ranks
    folder.mkdir(parents=True, exist_ok=True)
    own = MetricsLog(folder, steps, QUIET, trainer.step, trainer.log_state) if ranks.rank == 0 else None
    validations = ranks.first(lambda: {} if own is None else own.validations())
    return SilentLog(validations) if own is None else own
