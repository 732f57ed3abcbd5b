"""The held-out measurement of on-policy distillation: the divergence from the teachers on sampled answers.

Shapes: B rows, T tokens, D width, P parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from seektune.data.held_out_loss import HeldOutLoss
from seektune.data.rollouts import Rollout
from seektune.data.step_data import Share, StepData
from seektune.model.distillation import DIVERGENCE, OnPolicyDistillation
from seektune.model.head import Taught
from seektune.parallel.model import ParallelModel
from seektune.parallel.placement import gathered
from seektune.parallel.reference import ReferenceModel
from seektune.run.context import RunContext
from seektune.run.data import TrainData
from seektune.run.held_out_reward import held_out_answers, reward_parts
from seektune.run.rollout_batches import columns_of, micro_batches
from seektune.run.sampled_groups import GroupSampler
from seektune.sequence import IGNORE_INDEX, Batch, SequenceLayout


def held_out_divergence(
    run: RunContext,
    model: ParallelModel,
    data: TrainData,
    sampler: GroupSampler,
    objective: OnPolicyDistillation,
    reference: ReferenceModel,
    alive: Callable[[], None],
) -> HeldOutLoss:
    """The objective on one sampled answer to each held-out prompt, and their mean reward if they have one; collective.

    Raises:
        RolloutError: a reward failed, on every process.
    """
    answers = held_out_answers(run, model, data, sampler, alive)
    totals = {}
    for label, own in answers.items():
        batches = _own_batches(run, own, data.tokenizer.pad_id)
        found = [_totals(model, objective, reference.own(batch)) for batch in batches]
        totals[label] = model.mesh.sum(torch.stack(found).sum(dim=0))
        alive()
    means = _means(objective, torch.stack([*totals.values()]).sum(dim=0))
    rewards = reward_parts([each for own in answers.values() for each in own]) if sampler.section.rewards else {}
    parts = {**means, **rewards}
    if not data.validation_by_dataset:
        return HeldOutLoss(means[DIVERGENCE], parts=parts)
    each = {label: _means(objective, total_P) for label, total_P in totals.items()}
    return HeldOutLoss(means[DIVERGENCE], {label: own[DIVERGENCE] for label, own in each.items()}, parts, each)


def _own_batches(run: RunContext, answers: Sequence[Rollout], pad_id: int) -> Sequence[Batch]:
    """This process's micro-batches; all have as many, of which the last may teach nothing."""
    share = Share(run.mesh.coords.dp, run.mesh.dims.data_size)
    batches = micro_batches(answers, run.recipe.batch.micro_size, pad_id, columns_of(run.recipe))
    idle = replace(batches[-1], labels=torch.full_like(batches[-1].labels, IGNORE_INDEX))
    return StepData.of(batches + [idle] * (-len(batches) % share.size), share).batches


@torch.no_grad()
def _totals(model: ParallelModel, objective: OnPolicyDistillation, batch: Batch) -> Tensor:
    """Sums of the parts of a micro-batch and last what they are divided by, fp64 `[P + 1]`; 0 before the last stage."""
    hidden_BTD = model.own_hidden(batch)
    last = next((stage for stage in model.stages.values() if stage.is_last), None)
    if last is None:
        return torch.zeros(len(objective.part_names) + 1, dtype=torch.float64, device=model.device)
    here = batch.to(model.device)
    layout = SequenceLayout.from_documents(here.documents)
    taught = Taught(here.labels, 1.0, here.columns)
    found = objective.of_hidden(hidden_BTD, layout, taught, 1.0, gathered(last.head.values()))
    return torch.stack([*(found.parts[name].double() for name in objective.part_names), _count(objective, here)])


def _count(objective: OnPolicyDistillation, batch: Batch) -> Tensor:
    return torch.tensor(objective.count(batch), dtype=torch.float64, device=batch.tokens.device)


def _means(objective: OnPolicyDistillation, total_P: Tensor) -> Mapping[str, float]:
    values = (total_P[:-1] / total_P[-1]).tolist()
    return objective.means(dict(zip(objective.part_names, values, strict=True)))
