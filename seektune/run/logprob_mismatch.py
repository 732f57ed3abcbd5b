"""How far the probabilities of sampled tokens by the training forward are from those that they were sampled with.

Shapes: B rows, T tokens, N sampled tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seektune.parallel.model import ParallelModel
from seektune.parallel.reference import at_tokens
from seektune.sequence import IGNORE_INDEX, ROLLOUT_LOGPROBS, Batch

NOTABLE = 1e-3
"""Differences of probabilities above this are counted."""


def mismatch(model: ParallelModel, batches: Sequence[Batch], temperature: float) -> dict[str, float]:
    """Mean and maximum of the absolute difference of probabilities, and the share of tokens with more than 1e-3.

    One forward pass of this process's micro-batches without gradient; collective.
    """
    gaps = [_gaps(batch, model.own_logprobs(batch, temperature).cpu()) for batch in batches]
    gaps_N = torch.cat(gaps).double()
    mesh = model.mesh
    sums = torch.stack([gaps_N.sum(), (gaps_N > NOTABLE).double().sum(), torch.tensor(float(len(gaps_N))).double()])
    largest = torch.zeros(mesh.dims.world, dtype=torch.float64)
    largest[mesh.rank] = gaps_N.max() if len(gaps_N) else 0.0
    total, notable, count = mesh.sum(sums.to(model.device)).tolist()
    return {
        "mismatch_mean": total / max(count, 1),
        "mismatch_max": float(mesh.sum(largest.to(model.device)).max()),
        "mismatch_share": notable / max(count, 1),
    }


def _gaps(batch: Batch, logprobs_BT: Tensor) -> Tensor:
    """Of the sampled tokens of a micro-batch, `[N]`."""
    sampled_BT = batch.labels != IGNORE_INDEX
    trained_N = at_tokens(logprobs_BT)[sampled_BT].double().exp()
    return (trained_N - batch.columns[ROLLOUT_LOGPROBS][sampled_BT].double().exp()).abs()
