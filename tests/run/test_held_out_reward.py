"""The held-out reward: its mean, and that it tells a watchdog of each answer."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from seektune.data.example import continuation
from seektune.data.rollouts import Rollout
from seektune.run import held_out_reward as module
from seektune.run.rewarded_prompt import RewardedPrompt


class Rows:
    """Held-out rows, the longest first."""

    lengths = (4, 3, 2)

    def example(self, number: int) -> Any:
        return continuation([number] * (self.lengths[number] - 1), [9], f"row {number}")


def rewarded(_: Any, tasks: Sequence[RewardedPrompt], start: int, progress: Callable[[], None]) -> list[Rollout]:
    """As of `GroupSampler`: rewards 2, 1 and 0 in the order of tasks."""
    assert start == 0
    for _each in tasks:
        progress()
    return [Rollout(each.prompt, (), (), float(each.prompt[0])) for each in tasks]


def test_the_shortest_prompts_are_first_and_each_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    alive = lambda: told.append("alive")  # noqa: E731
    passed: list[Any] = []

    def decode(run: Any, model: Any, body: Callable[[Any], Any], other_ranks: Any) -> Any:
        passed.append(other_ranks)
        return body(None)

    monkeypatch.setattr(module, "decode_rewarded", decode)
    run: Any = SimpleNamespace(stop_alone_if_signalled=lambda: told.append("stop"))
    data: Any = SimpleNamespace(validation_by_dataset={}, held_out=[Rows()])
    sampler: Any = SimpleNamespace(rewarded=rewarded)
    model: Any = None
    found = module.held_out_reward(run, model, data, sampler, alive)
    assert (found.loss, found.parts["reward"]) == (-1.0, 1.0)
    assert told == ["alive", "stop"] * 3
    assert passed == [alive]
