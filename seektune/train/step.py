"""One optimizer step on one device: count, place, forward and backward per micro-batch, bound, move, record.

Shapes: E experts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from time import perf_counter

import psutil
import torch
from torch import Tensor

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.gate import RoutingLedger
from seektune.sequence import Batch
from seektune.train.balance import sum_loads, update_biases
from seektune.train.config import LossConfig
from seektune.train.gradient import NotFiniteError, clip, gradient_norm
from seektune.train.loss import LossParts, loss_parts, sum_parts

GIGABYTE = 10**9


@dataclass(frozen=True)
class StepRecord:
    """What a step did."""

    step: int
    """Counted from 1."""
    loss: float
    """Next-token cross-entropy per taught token of the whole step, in nats."""
    mtp_loss: float
    """The MTP block's cross-entropy over the same number of tokens; 0 where it did not run."""
    balance_loss: float
    """Sequence-wise balance loss summed over layers; 0 where it is off."""
    grad_norm: float
    """Norm of the gradient over all parameters, before clipping."""
    lr: float
    tokens: int
    """Real tokens that went through the model; padding is not counted."""
    taught_tokens: int
    """Those of them that the loss counts."""
    seconds: float
    tokens_per_s: float
    memory_gb: float
    """Peak memory of the GPU so far, or the memory of the process; 10^9 bytes."""
    loads: dict[int, list[int]]
    """Tokens per routed expert, by layer id; the MTP block's id is the number of layers."""


def train_step(
    model: DeepseekV4ForCausalLM,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    step: int,
    lr: float,
    loss: LossConfig,
    max_grad_norm: float | None,
    phase: Callable[[str], None] = lambda name: None,
) -> StepRecord:
    """Train on the micro-batches of one step; their losses share one denominator, the taught tokens of the step.

    `phase` hears the name of each phase as it begins.

    Raises:
        ValueError: no token of the step is taught.
        NotFiniteError: loss or gradient is not finite; then nothing has moved and no gradient is left behind.
    """
    began = perf_counter()
    tokens = sum(int((batch.documents != 0).sum()) for batch in batches)
    taught = sum(batch.taught() for batch in batches)
    if taught == 0:
        raise ValueError(f"step {step}: none of its {tokens} tokens is taught; check the labels of the data")
    try:
        parts, loads = _accumulate(model, batches, loss, tokens, taught, step, phase)
        phase(f"step {step}: measuring and moving")
        norm = _bound(model, max_grad_norm, step, float(parts.loss))
        _move(optimizer, lr)
    finally:
        optimizer.zero_grad(set_to_none=True)
    update_biases(model.gates(), loads, loss.bias_update_speed)
    memory = _memory_gb(model.embed.weight.device)
    loss_value, mtp, balance = torch.stack([parts.loss, parts.mtp, parts.balance]).tolist()
    seconds = perf_counter() - began
    return StepRecord(
        step=step,
        loss=loss_value,
        mtp_loss=mtp,
        balance_loss=balance,
        grad_norm=norm,
        lr=lr,
        tokens=tokens,
        taught_tokens=taught,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        memory_gb=memory,
        loads={layer: load_E.tolist() for layer, load_E in loads.items()},
    )


def _accumulate(
    model: DeepseekV4ForCausalLM,
    batches: Sequence[Batch],
    config: LossConfig,
    tokens: int,
    taught: int,
    step: int,
    phase: Callable[[str], None],
) -> tuple[LossParts, dict[int, Tensor]]:
    """Forward and backward of every micro-batch; gradients add up in the parameters."""
    mtp = config.mtp_weight > 0 and model.config.num_nextn_predict_layers > 0
    device = model.embed.weight.device
    parts, loads = [], []
    for number, batch in enumerate(batches, start=1):
        phase(f"step {step}: forward of micro-batch {number}")
        placed = batch.to(device)
        ledger = RoutingLedger(balance_loss=config.balance_weight > 0)
        output = model(
            placed.tokens,
            labels=placed.labels,
            documents=placed.documents,
            mtp=mtp,
            with_logits=False,
            num_items_in_batch=taught,
            ledger=ledger,
        )
        share = loss_parts(output, ledger, tokens)
        total, found = share.total(config), share.detached()
        if not isfinite(float(found.total(config))):
            raise NotFiniteError(
                f"step {step}: the loss is not finite in micro-batch {number} of {len(batches)} ({_describe(found)}); "
                "nothing was updated. A lower optimizer.lr, more schedule.warmup_steps or model.dtype fp32 may help"
            )
        phase(f"step {step}: backward of micro-batch {number}")
        total.backward()
        parts.append(found)
        loads.append(ledger.loads)
    return sum_parts(parts), sum_loads(loads)


def _describe(share: LossParts) -> str:
    return f"loss {float(share.loss):g}, MTP {float(share.mtp):g}, balance {float(share.balance):g}"


def _bound(model: DeepseekV4ForCausalLM, max_norm: float | None, step: int, loss: float) -> float:
    """The gradient's norm, after which it is at most `max_norm` long."""
    try:
        norm = gradient_norm(model)
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
