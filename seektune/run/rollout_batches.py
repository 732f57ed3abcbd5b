"""Micro-batches of rollouts with the columns that an objective reads, and what is logged of a rollout."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from seektune.data.rollouts import POLICY_COLUMNS, Rollout, Values, collate_rollouts, teacher_columns
from seektune.recipe.recipe import Recipe
from seektune.run.sampled_groups import SampledGroups
from seektune.sequence import Batch
from seektune.train.rollout_objectives import OpdConfig, RolloutConfig


def columns_of(recipe: Recipe) -> Mapping[str, Values]:
    """The columns that the objective of a recipe reads of its rollouts."""
    section = recipe.objective
    if not isinstance(section, OpdConfig):
        return POLICY_COLUMNS
    numbers = section.teacher_numbers([each.log_name for each in recipe.datasets])
    return teacher_columns(numbers, [each.weight for each in section.teachers])


def micro_batches(rollouts: Sequence[Rollout], size: int, pad_id: int, columns: Mapping[str, Values]) -> list[Batch]:
    """One answer in each row, by dataset and the longest first: a micro-batch has one teacher and little padding."""
    rows = [[each] for each in sorted(rollouts, key=lambda each: (each.dataset, -each.tokens))]
    return [collate_rollouts(rows[start : start + size], pad_id, columns) for start in range(0, len(rows), size)]


def facts(found: SampledGroups, section: RolloutConfig) -> dict[str, float]:
    """What is logged of a rollout."""
    rollouts = found.rollouts
    values = {
        "answer_tokens": fmean(each.sampled for each in rollouts),
        "truncated_share": fmean(each.truncated for each in rollouts),
    }
    if section.tools.url is not None:
        values["tool_calls"] = fmean(each.calls for each in rollouts)
        values["tool_tokens"] = fmean(len(each.answer) - each.sampled for each in rollouts)
    if not section.rewards:
        return values
    mean = fmean(each.reward for each in rollouts)
    spread = fmean((each.reward - mean) ** 2 for each in rollouts) ** 0.5
    return {"reward": mean, "reward_std": spread, **values, "equal_groups_dropped": found.dropped}
