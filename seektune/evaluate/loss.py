"""The validation loss."""

from collections.abc import Callable, Mapping, Sequence

import torch

from seektune.data.held_out_loss import HeldOutLoss
from seektune.evaluate.likelihood import Scorer
from seektune.sequence import Batch


def validation_loss(model: Scorer, batches: Sequence[Batch], alive: Callable[[], None] = lambda: None) -> float:
    """Mean next-token cross-entropy, in nats, over all taught tokens of all batches together.

    Every token has the same weight, whatever the batch sizes. `alive` is called after each batch.
    """
    total, count = _sums(model, batches, alive)
    assert count, "no token of the validation batches is taught"
    return total / count


def held_out_loss(
    model: Scorer,
    batches: Sequence[Batch],
    by_dataset: Mapping[str, Sequence[Batch]],
    alive: Callable[[], None] = lambda: None,
) -> HeldOutLoss:
    """The validation loss, and that of each dataset if there are several; `batches` are those of all.

    `alive` is called after each batch.
    """
    if not by_dataset:
        return HeldOutLoss(validation_loss(model, batches, alive))
    sums = {name: _sums(model, own, alive) for name, own in by_dataset.items()}
    count = sum(taught for _, taught in sums.values())
    assert count, "no token of the validation batches is taught"
    each = {name: total / taught for name, (total, taught) in sums.items() if taught}
    return HeldOutLoss(sum(total for total, _ in sums.values()) / count, each)


@torch.no_grad()
def _sums(model: Scorer, batches: Sequence[Batch], alive: Callable[[], None]) -> tuple[float, int]:
    """The sum of losses, and the number of taught tokens."""
    total = 0.0
    count = 0
    for batch in batches:
        taught = batch.taught()
        if taught:
            total += float(model.score(batch).losses_BT.double().sum())
            count += taught
        alive()
    return total, count
