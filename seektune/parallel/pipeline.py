"""Forward and backward of a step's micro-batches: one after the other, or through the pipeline.

Shapes: B rows, T tokens, S streams, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from seektune.parallel.config import PipelineConfig
from seektune.parallel.layer_split import stages_of
from seektune.parallel.mesh import Axes, Mesh
from seektune.parallel.stage import Stage, StageTask
from seektune.sequence import Batch

Schedule = Schedule1F1B | ScheduleInterleaved1F1B | ScheduleZBVZeroBubble | ScheduleDualPipeV

Phase = Callable[[str], None]
"""Called with the name of each phase as it begins."""

SCHEDULES = {
    "1f1b": Schedule1F1B,
    "interleaved1f1b": ScheduleInterleaved1F1B,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


class Runner(Protocol):
    """Runs the micro-batches of a step."""

    def train(self, batches: Sequence[Batch], task: StageTask, phase: Phase) -> None:
        """Forward and backward of all; gradients accumulate, and the task gets the results."""

    def score(self, batch: Batch, task: StageTask) -> Tensor | None:
        """Values of `TokenScores` for the local slice, `[B, L, 2]`; None if another stage has them."""


class SequentialRunner:
    """Runs one micro-batch after the other through the only stage; gradients are reduced with the last."""

    def __init__(self, stage: Stage):
        self._stage = stage

    def train(self, batches: Sequence[Batch], task: StageTask, phase: Phase) -> None:
        """As `Runner`."""
        for number, batch in enumerate(batches, start=1):
            self._finishing(number == len(batches))
            phase(f"forward of micro-batch {number}")
            loss = self._stage(batch.tokens, **_rest(batch, task))
            phase(f"backward of micro-batch {number}")
            loss.backward()
            # its graph keeps the head's gradient, which is as large as the head, through the next forward pass
            del loss

    @torch.no_grad()
    def score(self, batch: Batch, task: StageTask) -> Tensor:
        """As `Runner`."""
        found = self._stage(batch.tokens, **_rest(batch, task))
        assert isinstance(found, Tensor)
        return found

    def _finishing(self, last: bool) -> None:
        if isinstance(self._stage, FSDPModule):
            self._stage.set_requires_gradient_sync(last)
            self._stage.set_is_last_backward(last)


class PipelineRunner:
    """Runs micro-batches through all stages, by a schedule of torch.distributed.pipelining.

    All micro-batches of a step have one shape, which may differ from step to step: then the schedule is set up anew,
    which costs two small messages between neighbours.
    """

    def __init__(self, stages: Mapping[int, Stage], count: int, mesh: Mesh, axes: Axes, config: PipelineConfig):
        """`stages` are those of this process by number, of `count` in all."""
        self._stages = stages
        self._count = count
        self._mesh = mesh
        self._group = axes.pipeline
        self._config = config
        self._ready: tuple[object, Schedule] | None = None
        size = mesh.dims.pp_size
        held = {process: stages_of(process, size, count, config.schedule) for process in range(size)}
        self._process_of = {number: process for process, numbers in held.items() for number in numbers}

    def train(self, batches: Sequence[Batch], task: StageTask, phase: Phase) -> None:
        """As `Runner`; all micro-batches have the same shape."""
        assert task.loss is not None
        phase(f"pipeline of {len(batches)} micro-batches")
        extra = 1 if task.loss.mtp else 0
        schedule = self._schedule(batches[0], len(batches), extra)
        whole = Batch.cat(batches)
        schedule.step(*self._entry(whole), target=whole.labels, return_outputs=False, **_rest(whole, task))

    @torch.no_grad()
    def score(self, batch: Batch, task: StageTask) -> Tensor | None:
        """As `Runner`; rows are sent from stage to stage by hand, because V schedules have no forward-only mode."""
        found = []
        parts = min(self._mesh.dims.pp_size, len(batch.tokens))
        for part in range(parts):
            rows = batch.share(part, parts)
            x: Tensor | None = None
            for number in sorted(self._stages):
                x = self._relay(number, rows, x, task)
            if self._count - 1 in self._stages and x is not None:
                found.append(x)
        return torch.cat(found) if found else None

    def _relay(self, number: int, batch: Batch, x: Tensor | None, task: StageTask) -> Tensor | None:
        """One stage's forward; input and output are received from and sent to stages on other processes."""
        stage = self._stages[number]
        here = batch.tokens.shape[1] // self._mesh.dims.cp_size
        if stage.is_first:
            x = batch.tokens
        elif number - 1 not in self._stages:
            shape = (batch.tokens.shape[0], here, stage.config.hc_mult, stage.config.hidden_size)
            x = torch.empty(shape, dtype=stage.dtype, device=self._mesh.device)
            dist.recv(x, group=self._group, group_src=self._process_of[number - 1])
        out: Tensor = stage(x, **_rest(batch, task))
        if not stage.is_last and number + 1 not in self._stages:
            dist.send(out.contiguous(), group=self._group, group_dst=self._process_of[number + 1])
        return out

    def _entry(self, batch: Batch) -> tuple[Tensor, ...]:
        """The inputs of the first stage."""
        return (batch.tokens,) if 0 in self._stages else ()

    def _schedule(self, batch: Batch, count: int, extra: int) -> Schedule:
        """A schedule for `count` micro-batches of this shape with `extra` streams; the last one is kept."""
        key = (batch.tokens.shape, count, extra)
        if self._ready is None or self._ready[0] != key:
            made = [self._stage(number, stage, batch, extra) for number, stage in self._stages.items()]
            only = made[0] if self._config.schedule == "1f1b" else made
            schedule = SCHEDULES[self._config.schedule](only, count, loss_fn=_output, scale_grads=False)
            self._ready = key, schedule
        return self._ready[1]

    def _stage(self, number: int, stage: Stage, batch: Batch, extra: int) -> PipelineStage:
        rows, length = batch.tokens.shape
        here = length // self._mesh.dims.cp_size
        shape = (rows, here, stage.config.hc_mult + extra, stage.config.hidden_size)
        streams = torch.empty(shape, dtype=stage.dtype, device="meta", requires_grad=True)
        return PipelineStage(
            stage,
            number,
            self._count,
            self._mesh.device,
            input_args=batch.tokens.to("meta") if stage.is_first else streams,
            output_args=torch.empty((), device="meta", requires_grad=True) if stage.is_last else streams,
            group=self._group,
        )


def _rest(batch: Batch, task: StageTask) -> dict[str, Any]:
    """The arguments of a stage that follow its input."""
    return {
        "tokens": batch.tokens,
        "documents": batch.documents,
        "labels": batch.labels,
        "columns": dict(batch.columns),
        "task": task,
    }


def _output(output: Tensor, _target: Tensor) -> Tensor:
    """The loss, which the last stage already computes."""
    return output
