"""The noise scale of gradients: about the batch size beyond which larger batches save few steps.

McCandlish et al. 2018 (arXiv 1812.06162, appendix A): `tr(S) / |G|^2`, with the covariance `S` of a token's gradient
and the expected gradient `G`. The squared norm of the gradient of n tokens has the expectation `|G|^2 + tr(S) / n`, so
that those of the whole step and of its halves give both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import fmean

import torch

from seektune.data.step_data import StepData
from seektune.model.objective import Objective
from seektune.parallel.model import ParallelModel
from seektune.sequence import IGNORE_INDEX, Batch
from seektune.train.config import LossConfig
from seektune.train.gradient import shard_norms, squared_norm
from seektune.train.step import StepObjective, make_step_loss

HALVES = (0, 1)
VARIANCE = "gradient_variance"
SIGNAL = "gradient_signal"
SCALE = "noise_scale"
"""Names of the values in logs."""


@dataclass(frozen=True)
class PartGradient:
    """The gradient of the mean loss over some rows of a step."""

    square: float
    """Of its norm, over all parameters."""
    tokens: float
    """Taught tokens of these rows."""


def half_gradients(model: ParallelModel, data: StepData, loss: LossConfig, objective: Objective) -> list[PartGradient]:
    """The gradients of every second row of a step, and of the others; collective. No gradient is left.

    Every process runs its micro-batches twice, with the labels of the other half ignored, so that any mesh and pipeline
    finds the same. Empty if a half teaches nothing, or has a loss or gradient that is not finite.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        found = [_gradient_of(model, _half(model, data, half), loss, objective) for half in HALVES]
    return found if all(each.tokens and isfinite(each.square) for each in found) else []


def noise_values(parts: Sequence[PartGradient], norm: float, tokens: int) -> dict[str, float]:
    """Values for the log, from the parts of a step and the norm of the whole step's gradient over `tokens`.

    `gradient_variance` estimates `tr(S)` per token and `gradient_signal` `|G|^2`, each without bias, so that both can
    be averaged over steps; `noise_scale` is their ratio in tokens, left out where the signal is lost in the noise.
    """
    if not parts:
        return {}
    excess = fmean(part.square for part in parts) - norm**2
    variance = excess / (fmean(1 / part.tokens for part in parts) - 1 / tokens)
    signal = norm**2 - variance / tokens
    values = {VARIANCE: variance, SIGNAL: signal}
    return values | {SCALE: variance / signal} if signal > 0 else values


def _gradient_of(model: ParallelModel, data: StepData, loss: LossConfig, objective: Objective) -> PartGradient:
    if not data.taught:
        return PartGradient(0.0, 0)
    wanted = make_step_loss(data, loss, model.config.mtp_layers > 0, StepObjective(objective))
    try:
        model.train(data.batches, wanted, lambda phase: None)
        square = float(squared_norm(shard_norms(model.named_parameters(), model.mesh), model.mesh))
    finally:
        for parameter in model.parameters():
            parameter.grad = None
    return PartGradient(square, data.taught)


def _half(model: ParallelModel, data: StepData, half: int) -> StepData:
    """A step whose other rows are not taught; rows are counted over the whole step, in the order of one device."""
    mesh = model.mesh
    size = mesh.dims.data_size
    batches = [
        _taught_in(batch, half, (number * size + mesh.coords.dp) * len(batch.tokens))
        for number, batch in enumerate(data.batches)
    ]
    own = [sum(batch.taught() for batch in batches), sum(batch.weight() for batch in batches)]
    # the processes of a pipeline and of a row's slices have the same rows
    copies = mesh.dims.world // size
    taught, weight = (mesh.sum(torch.tensor(own, dtype=torch.float64, device=mesh.device)) / copies).tolist()
    return replace(
        data, batches=batches, taught=round(taught), weight=None if data.weight is None else weight, examples=None
    )


def _taught_in(batch: Batch, half: int, first: int) -> Batch:
    """The batch with labels in every second row only; `first` is the number of its first row."""
    rows_B1 = torch.arange(first, first + len(batch.labels), device=batch.labels.device)[:, None]
    return replace(batch, labels=torch.where(rows_B1 % len(HALVES) == half, batch.labels, IGNORE_INDEX))
