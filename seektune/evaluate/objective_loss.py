"""The held-out loss of an objective other than cross-entropy, and its parts."""

from collections.abc import Callable, Mapping, Sequence

import torch

from seektune.data.held_out_loss import HeldOutLoss
from seektune.model.objective import LogprobObjective, TokenLogprobs
from seektune.model.step_loss import LOSS
from seektune.parallel.model import ParallelModel
from seektune.parallel.reference import ReferenceModel
from seektune.sequence import Batch


def held_out_objective(
    model: ParallelModel,
    objective: LogprobObjective,
    reference: ReferenceModel,
    batches: Sequence[Batch],
    by_dataset: Mapping[str, Sequence[Batch]],
    alive: Callable[[], None] = lambda: None,
) -> HeldOutLoss:
    """The objective's mean over all held-out rows, and over those of each dataset; collective.

    `alive` is called after each batch.
    """
    if not by_dataset:
        means = _means(objective, [_totals(model, objective, reference, batches, alive)])
        return HeldOutLoss(means.pop(LOSS), parts=means)
    totals = {name: _totals(model, objective, reference, own, alive) for name, own in by_dataset.items()}
    means = _means(objective, list(totals.values()))
    each = {name: _means(objective, [own]) for name, own in totals.items()}
    losses = {name: own.pop(LOSS) for name, own in each.items()}
    return HeldOutLoss(means.pop(LOSS), losses, means, each)


@torch.no_grad()
def _totals(
    model: ParallelModel,
    objective: LogprobObjective,
    reference: ReferenceModel,
    batches: Sequence[Batch],
    alive: Callable[[], None],
) -> dict[str, float]:
    """Sums of loss and parts over batches, and under "" what they are divided by."""
    sums = dict.fromkeys((LOSS, *objective.part_names, ""), 0.0)
    for batch in batches:
        whole = reference.shared(batch)
        found = objective.loss(TokenLogprobs.given(model.logprobs(batch).cpu(), whole), 1.0)
        for name, value in {LOSS: found.loss, **found.parts}.items():
            sums[name] += float(value)
        sums[""] += objective.count(batch)
        alive()
    return sums


def _means(objective: LogprobObjective, totals: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Loss and parts over all of these batches."""
    count = sum(each[""] for each in totals)
    assert count, "the held-out rows hold nothing that the objective counts"
    sums = {name: sum(each[name] for each in totals) / count for name in totals[0] if name}
    return {LOSS: sums.pop(LOSS), **objective.means(sums)}
