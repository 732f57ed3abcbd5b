"""The interface of rewards, and the rewards that a recipe names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from math import isfinite
from typing import TypeAlias

from seektune.rewards.answer_metrics import METRICS
from seektune.rewards.config import PluginRewardConfig, RewardConfig, ServerRewardConfig, VerifierConfig
from seektune.rewards.sample import RewardSample
from seektune.rewards.server import ServerReward

ENTRY_POINTS = "seektune.rewards"
"""The entry point group of plug-ins."""


Reward: TypeAlias = Callable[[Sequence[RewardSample]], Sequence[float]]
"""The reward of each answer; the signature of plug-ins too."""


def make_reward(sections: Sequence[RewardConfig]) -> Reward:
    """The sum of the rewards of sections, with their weights.

    Raises:
        ValueError: a plug-in or an extra is not installed.
    """
    parts = [(section.weight, _make(section), section.name) for section in sections]

    def total(samples: Sequence[RewardSample]) -> list[float]:
        found = [[weight * value for value in _checked(name, own(samples), samples)] for weight, own, name in parts]
        return [sum(values) for values in zip(*found, strict=True)]

    return total


@dataclass(frozen=True)
class Verifier:
    """1 for answers that a metric finds equal to the reference, 0 for others."""

    metric: str

    def __call__(self, samples: Sequence[RewardSample]) -> list[float]:
        """As `Reward`.

        Raises:
            ValueError: a reference is not what the metric takes.
        """
        return [float(self._agrees(sample)) for sample in samples]

    def _agrees(self, sample: RewardSample) -> bool:
        metric = METRICS[self.metric]
        reference = sample.reference
        calls = [{"name": name, "arguments": arguments} for name, arguments in reference.calls]
        expected = metric.expected(calls if self.metric == "tool_call_equal" and calls else reference.text)
        return not sample.truncated and metric.equal(sample.answer, expected)


def _make(section: RewardConfig) -> Reward:
    match section:
        case VerifierConfig():
            return Verifier(section.metric)
        case ServerRewardConfig():
            return ServerReward(section.url, section.timeout, section.retries)
        case PluginRewardConfig():
            return _plugin(section.plugin)
    raise AssertionError(section)


def _plugin(name: str) -> Reward:
    found = entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none is"
        raise ValueError(f"no installed package offers the reward {name!r:.80} ({ENTRY_POINTS}; installed: {known})")
    loaded: Reward = found[name].load()
    return loaded


def _checked(name: str, rewards: Sequence[float], samples: Sequence[RewardSample]) -> list[float]:
    if len(rewards) != len(samples):
        raise ValueError(f"the reward {name} gave {len(rewards)} values for {len(samples)} answers")
    found = [float(value) for value in rewards]
    if not all(map(isfinite, found)):
        raise ValueError(f"the reward {name} gave a value that is not finite")
    return found
