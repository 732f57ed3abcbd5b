"""The loss on examples that are not trained on."""

from collections.abc import Sequence

import torch
from torch import nn

from seektune.sequence import Batch


@torch.inference_mode()
def validation_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Mean next-token cross-entropy, in nats, over all taught tokens of all batches together.

    A token counts the same in whichever batch it stands. The model is asked for
    `model(tokens, labels=..., documents=..., with_logits=False).loss`, the mean over the taught tokens of one batch.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in batches:
        taught = batch.taught()
        if taught:
            placed = batch.to(device)
            out = model(placed.tokens, labels=placed.labels, documents=placed.documents, with_logits=False)
            total += float(out.loss) * taught
            count += taught
    assert count, "no token of the validation batches is taught"
    return total / count
