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
    """Mean and maximum of the absolute difference of probabilities, and the share of tokens with more than 1e-3; and
    the maximum of that of log-probabilities.

    One forward pass of this process's micro-batches without gradient; collective.
    """
    trained_2N = torch.cat([_pairs(batch, model.own_logprobs(batch, temperature).cpu()) for batch in batches], dim=1)
    logprob_gaps_N = (trained_2N[0] - trained_2N[1]).abs()
    gaps_N = (trained_2N[0].exp() - trained_2N[1].exp()).abs()
    mesh = model.mesh
    sums = torch.stack([gaps_N.sum(), (gaps_N > NOTABLE).double().sum(), torch.tensor(float(len(gaps_N))).double()])
    largest_2R = torch.zeros(2, mesh.dims.world, dtype=torch.float64)
    if len(gaps_N):
        largest_2R[:, mesh.rank] = torch.stack([gaps_N.max(), logprob_gaps_N.max()])
    largest, largest_logprob = mesh.sum(largest_2R.to(model.device)).amax(dim=1).tolist()
    total, notable, count = mesh.sum(sums.to(model.device)).tolist()
    return {
        "mismatch_mean": total / max(count, 1),
        "mismatch_max": largest,
        "mismatch_share": notable / max(count, 1),
        "mismatch_logprob_max": largest_logprob,
    }


def _pairs(batch: Batch, logprobs_BT: Tensor) -> Tensor:
    """Log-probabilities of the sampled tokens of a micro-batch in training and in decoding, fp64 `[2, N]`."""
    sampled_BT = batch.labels != IGNORE_INDEX
    decoded_N = batch.columns[ROLLOUT_LOGPROBS][sampled_BT]
    return torch.stack([at_tokens(logprobs_BT)[sampled_BT], decoded_N]).double()
