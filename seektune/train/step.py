"""One optimizer step: forward and backward of all micro-batches, gradient clipping, update, metrics.

Shapes: E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter

import psutil
import torch
from torch import Tensor

from seektune.data.step_data import StepData
from seektune.model.objective import DraftObjective, LossParts, Objective
from seektune.parallel.model import ParallelModel
from seektune.train.balance import update_biases
from seektune.train.config import LossConfig
from seektune.train.gradient import NotFiniteError, clip, gradient_norm

GIGABYTE = 10**9


@dataclass(frozen=True)
class StepRecord:
    """The metrics of a step."""

    step: int
    """Counted from 1."""
    loss: float
    """Next-token cross-entropy per taught token of the whole step, in nats."""
    mtp_loss: float
    """The MTP block's cross-entropy over the same number of tokens; 0 if it did not run."""
    balance_loss: float
    """Sequence-wise balance loss summed over layers; 0 if it is off."""
    grad_norm: float
    """Norm of the gradient over all parameters, before clipping."""
    lr: float
    tokens: int
    """Tokens without padding."""
    taught_tokens: int
    """Tokens that the loss counts."""
    seconds: float
    tokens_per_s: float
    memory_gb: float
    """Peak memory of the GPU so far, or the memory of the process; 10^9 bytes."""
    loads: dict[int, list[int]]
    """Tokens per routed expert, by layer id; the MTP block's id is the number of layers."""


def train_step(
    model: ParallelModel,
    optimizer: torch.optim.Optimizer,
    data: StepData,
    step: int,
    lr: float,
    loss: LossConfig,
    max_grad_norm: float | None,
    phase: Callable[[str], None] = lambda name: None,
    drafts: DraftObjective | None = None,
) -> StepRecord:
    """Train on all micro-batches of one step; their losses share one denominator, the taught tokens of the step.

    Every process is given its own micro-batches. `phase` is called with each phase's name as it begins.
    With `drafts`, the DSpark stages are trained instead of the model.

    Raises:
        ValueError: no token of the step is taught.
        NotFiniteError: loss or gradient is not finite, on every process; then nothing has moved and no gradient is
            left behind.
    """
    began = perf_counter()
    objective = replace(make_objective(data, loss, model.config.mtp_layers > 0), drafts=drafts)
    if objective.taught == 0:
        raise ValueError(f"step {step}: none of its {objective.tokens} tokens is taught; check the labels of the data")
    try:
        outcome = model.train(data.batches, objective, lambda name: phase(f"step {step}: {name}"))
        phase(f"step {step}: measuring and moving")
        parts = _finite(outcome.parts_M3, objective, step).tolist()
        norm = _bound(model, max_grad_norm, step, parts[0])
        _move(optimizer, lr)
    finally:
        optimizer.zero_grad(set_to_none=True)
    update_biases(model.gates(), outcome.loads, loss.bias_update_speed)
    memory = _memory_gb(model.device)
    seconds = perf_counter() - began
    return StepRecord(
        step=step,
        loss=parts[0],
        mtp_loss=parts[1],
        balance_loss=parts[2],
        grad_norm=norm,
        lr=lr,
        tokens=objective.tokens,
        taught_tokens=objective.taught,
        seconds=seconds,
        tokens_per_s=objective.tokens / seconds,
        memory_gb=memory,
        loads={layer: load_E.tolist() for layer, load_E in outcome.loads.items()},
    )


def make_objective(data: StepData, loss: LossConfig, has_mtp: bool) -> Objective:
    """The objective of a step, with one denominator for all its micro-batches."""
    return Objective(
        taught=data.taught,
        tokens=data.tokens,
        mtp=has_mtp and loss.mtp_weight > 0,
        mtp_weight=loss.mtp_weight,
        balance_weight=loss.balance_weight,
    )


def _finite(parts_M3: Tensor, objective: Objective, step: int) -> Tensor:
    """The step's losses `[3]`; if they are not finite, the error names the micro-batch."""
    for number, parts in enumerate(parts_M3, start=1):
        value = LossParts(*parts)
        if not isfinite(float(objective.total(value))):
            found = f"loss {float(value.loss):g}, MTP {float(value.mtp):g}, balance {float(value.balance):g}"
            raise NotFiniteError(
                f"step {step}: the loss is not finite in micro-batch {number} of {len(parts_M3)} ({found}); "
                "nothing was updated. A lower optimizer.lr, more schedule.warmup_steps or model.dtype fp32 may help"
            )
    return parts_M3.sum(dim=0)


def _bound(model: ParallelModel, max_norm: float | None, step: int, loss: float) -> float:
    """The gradient norm before clipping to `max_norm`."""
    try:
        norm = gradient_norm(model.named_parameters(), model.mesh)
    except NotFiniteError as error:
        raise NotFiniteError(f"step {step} (loss {loss:g}): {error}; nothing was updated") from None
    clip(model.parameters(), norm, max_norm)
    return norm


def _move(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIGABYTE
    return psutil.Process().memory_info().rss / GIGABYTE
