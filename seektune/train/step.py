"""One optimizer step: forward and backward of all micro-batches, gradient clipping, update, metrics.

Shapes: E experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import psutil
import torch

from seektune.data.step_data import StepData
from seektune.model.choices import IndexerStage
from seektune.model.indexer_loss import IndexerTraining
from seektune.model.objective import CROSS_ENTROPY, CrossEntropy, Objective
from seektune.model.step_loss import BALANCE_LOSS, LOSS, LOSSES, MTP_LOSS, DraftObjective, StepLoss
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import Outcome, ParallelModel
from seektune.parallel.reference import NO_REFERENCE, ReferenceModel
from seektune.train.balance import update_biases
from seektune.train.config import LossConfig
from seektune.train.gradient import NotFiniteError, clip, gradient_norm
from seektune.train.index_recall import recall_of
from seektune.train.router_health import bias_moves

GIGABYTE = 10**9


@dataclass(frozen=True)
class StepRecord:
    """The metrics of a step."""

    step: int
    """Counted from 1."""
    loss: float
    """Next-token cross-entropy per taught token of the whole step, in nats, or the loss of another objective."""
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
    parts: dict[str, float] = field(default_factory=dict)
    """Further parts of the objective, and values of sampled answers, by name."""
    index_recall: dict[int, float] = field(default_factory=dict)
    """Recall at top-k of trained indexers, by layer id; without those that had nothing to choose from."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Bad rows and overlong examples of streamed data so far, by name."""
    bias_moves: dict[int, list[float]] = field(default_factory=dict)
    """What balancing added to the biases of each gate, by layer id."""


@dataclass(frozen=True)
class StepObjective:
    """What a step trains, and by which loss beside those of `LossConfig`."""

    objective: Objective = CROSS_ENTROPY
    drafts: DraftObjective | None = None
    """Train the DSpark stages instead of the model."""
    indexers: IndexerStage = "frozen"
    """What is trained of the indexers."""
    reference: ReferenceModel = NO_REFERENCE


NEXT_TOKEN = StepObjective()
"""Cross-entropy, for the whole model but its indexers."""


def train_step(
    model: ParallelModel,
    optimizer: torch.optim.Optimizer,
    data: StepData,
    step: int,
    lr: float,
    loss: LossConfig,
    max_grad_norm: float | None,
    phase: Callable[[str], None] = lambda name: None,
    target: StepObjective = NEXT_TOKEN,
) -> StepRecord:
    """Train on all micro-batches of one step; their losses share one denominator: what the objective counts.

    Every process is given its own micro-batches. `phase` is called with each phase's name as it begins.

    Raises:
        ValueError: no token of the step is taught, or their weights sum to 0.
        NotFiniteError: loss or gradient is not finite, on every process; nothing has moved, and no gradient is left.
    """
    began = perf_counter()
    count = step_count(target.objective, data, model.mesh)
    wanted = _checked(make_step_loss(data, loss, model.config.mtp_layers > 0, target, count), step)
    try:
        phase(f"step {step}: the reference model")
        batches = [target.reference.own(batch) for batch in data.batches]
        outcome = model.train(batches, wanted, lambda name: phase(f"step {step}: {name}"))
        phase(f"step {step}: measuring and moving")
        parts = _finite(outcome, wanted, step)
        norm = _bound(model, max_grad_norm, step, parts[LOSS])
        _move(optimizer, lr)
    finally:
        optimizer.zero_grad(set_to_none=True)
    update_biases(model.gates(), outcome.loads, loss.bias_update_speed)
    loads = {layer: load_E.tolist() for layer, load_E in outcome.loads.items()}
    seconds = perf_counter() - began
    return StepRecord(
        step=step,
        loss=parts[LOSS],
        mtp_loss=parts[MTP_LOSS],
        balance_loss=parts[BALANCE_LOSS],
        grad_norm=norm,
        lr=lr,
        tokens=wanted.tokens,
        taught_tokens=wanted.taught,
        seconds=seconds,
        tokens_per_s=wanted.tokens / seconds,
        memory_gb=_memory_gb(model.device),
        loads=loads,
        parts={**data.values, **target.objective.means(_further(parts))},
        index_recall=recall_of(outcome.recall),
        left_out=dict(data.left_out),
        bias_moves=bias_moves(loads, loss.bias_update_speed, model.config.num_hash_layers),
    )


def make_step_loss(
    data: StepData,
    loss: LossConfig,
    has_mtp: bool,
    target: StepObjective = NEXT_TOKEN,
    count: float | None = None,
) -> StepLoss:
    """The loss of a step, with one denominator for all its micro-batches; `count` is that of `step_count`."""
    return StepLoss(
        taught=data.taught,
        weight=data.weight,
        objective=target.objective,
        count=count,
        tokens=data.tokens,
        mtp=has_mtp and loss.mtp_weight > 0,
        mtp_weight=loss.mtp_weight,
        balance_weight=loss.balance_weight,
        drafts=target.drafts,
        indexers=_indexer_training(target.indexers, data.tokens),
    )


def _indexer_training(stage: IndexerStage, tokens: int) -> IndexerTraining | None:
    return None if stage == "frozen" else IndexerTraining(tokens, warmup=stage == "warmup")


def step_count(objective: Objective, data: StepData, mesh: Mesh) -> float | None:
    """What an objective counts in the whole step; collective. None for cross-entropy, whose divisor the data knows."""
    if isinstance(objective, CrossEntropy):
        return None
    if objective.counts_examples and data.examples is not None:
        return data.examples
    own = sum(objective.count(batch) for batch in data.batches)
    # the processes of a pipeline and of a row's slices have the same micro-batches
    copies = mesh.dims.world // mesh.dims.data_size
    return float(mesh.sum(torch.tensor(own / copies, dtype=torch.float64, device=mesh.device)))


def _checked(wanted: StepLoss, step: int) -> StepLoss:
    if wanted.taught == 0:
        raise ValueError(f"step {step}: none of its {wanted.tokens} tokens is taught; check the labels of the data")
    if wanted.divisor <= 0:
        raise ValueError(
            f"step {step}: the weights of its taught tokens sum to {wanted.divisor:g}; their sum must be above 0"
        )
    return wanted


def _further(parts: Mapping[str, float]) -> dict[str, float]:
    """The parts of the objective beside the losses."""
    return {name: value for name, value in parts.items() if name not in LOSSES}


def _finite(outcome: Outcome, wanted: StepLoss, step: int) -> dict[str, float]:
    """The step's parts; if its loss is not finite, the error names the micro-batch."""
    for number, parts_P in enumerate(outcome.parts_MP, start=1):
        parts = dict(zip(outcome.names, parts_P, strict=True))
        if not isfinite(float(wanted.total(parts, parts_P.new_zeros(())))):
            found = ", ".join(f"{name} {float(parts[name]):g}" for name in LOSSES)
            raise NotFiniteError(
                f"step {step}: the loss is not finite in micro-batch {number} of {len(outcome.parts_MP)} ({found}); "
                "nothing was updated. A lower optimizer.lr, more schedule.warmup_steps or model.dtype fp32 may help"
            )
    return outcome.totals()


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
        group["lr"] = lr * group.get("lr_scale", 1.0)
    optimizer.step()


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIGABYTE
    return psutil.Process().memory_info().rss / GIGABYTE
