"""The validation loss."""

from collections.abc import Sequence

import torch

from seektune.evaluate.likelihood import Scorer
from seektune.sequence import Batch


@torch.no_grad()
def validation_loss(model: Scorer, batches: Sequence[Batch]) -> float:
    """Mean next-token cross-entropy, in nats, over all taught tokens of all batches together.

    Every token has the same weight, whatever the batch sizes.
    """
    total = 0.0
    count = 0
    for batch in batches:
        taught = batch.taught()
        if taught:
            total += float(model.score(batch).losses_BT.double().sum())
            count += taught
    assert count, "no token of the validation batches is taught"
    return total / count
