"""The actions of each pipeline process in order, from torch's schedules, without a process group."""

from types import SimpleNamespace
from typing import Any

import torch

from seektune.parallel.layer_split import Action, stages_of
from seektune.parallel.pipeline import SCHEDULES


def schedule_actions(schedule: str, pp_size: int, stages: int, count: int) -> dict[int, list[Action]]:
    """The actions of each process for `count` micro-batches."""
    if schedule == "1f1b":  # torch computes this order while it runs, so there is nothing to read
        return {process: _one_forward_one_backward(process, pp_size, count) for process in range(pp_size)}
    order = build_schedule(schedule, pp_size, stages, count).pipeline_order
    return {process: list(_plain(actions)) for process, actions in order.items()}


def _one_forward_one_backward(stage: int, stages: int, count: int) -> list[Action]:
    ahead = min(count, stages - stage)
    actions = [("F", stage, number) for number in range(ahead)]
    for number in range(count):
        actions.append(("B", stage, number))
        if ahead + number < count:
            actions.append(("F", stage, ahead + number))
    return actions


def _plain(actions: list[Any]) -> list[Action]:
    """Without idle slots and messages; overlapped actions one after the other."""
    each = [part for action in actions if action is not None for part in action.sub_actions or [action]]
    known = [(part.computation_type.value, part.stage_index, part.microbatch_index) for part in each]
    return [action for action in known if action[0] in ("F", "B", "I", "W")]


def build_schedule(schedule: str, pp_size: int, stages: int, count: int) -> Any:
    """torch's schedule object over stages that compute nothing.

    Raises:
        ValueError: the schedule does not take so many micro-batches or stages.
    """
    held: Any = [
        SimpleNamespace(
            num_stages=stages,
            group_size=pp_size,
            group_rank=0,
            stage_index=number,
            is_first=number == 0,
            is_last=number == stages - 1,
            submod=torch.nn.Identity(),
            has_backward=True,
            device=torch.device("cpu"),
        )
        for number in stages_of(0, pp_size, stages, schedule)
    ]
    only: Any = held[0] if schedule == "1f1b" else held
    return SCHEDULES[schedule](only, count, loss_fn=lambda output, target: output, scale_grads=False)
