"""The interface of rewards, and the rewards that a recipe names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from math import isfinite
from typing import Any, TypeAlias

from seektune.io.text import one_line
from seektune.rewards.answer_metrics import METRICS, Answer
from seektune.rewards.config import PluginRewardConfig, RewardConfig, ServerRewardConfig, VerifierConfig
from seektune.rewards.json_server import JsonServer
from seektune.rewards.sample import RewardSample
from seektune.rewards.server import ServerReward

ENTRY_POINTS = "seektune.rewards"
"""The entry point group of plug-ins."""


Reward: TypeAlias = Callable[[Sequence[RewardSample]], Sequence[float]]
"""The reward of each answer; the signature of plug-ins too."""


def make_reward(sections: Sequence[RewardConfig], stop: Callable[[], None] = lambda: None) -> Reward:
    """The sum of the rewards of sections, with their weights; 0 without sections.

    A server's reward calls `stop` before each try and each second; it may raise `Interrupted`.

    Raises:
        ValueError: a plug-in is not installed, or cannot be imported.
    """
    parts = [(section.weight, _make(section, stop), section.name) for section in sections]

    def total(samples: Sequence[RewardSample]) -> list[float]:
        found = [[weight * value for value in _checked(name, own(samples), samples)] for weight, own, name in parts]
        return [sum(values[number] for values in found) for number in range(len(samples))]

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
        expected = self.expected(sample.reference)
        return not sample.truncated and METRICS[self.metric].equal(sample.answer, expected)

    def expected(self, reference: Answer) -> Any:
        """What the metric compares answers with.

        Raises:
            ValueError: the reference is not what the metric takes, or its extra is not installed.
        """
        calls = [{"name": name, "arguments": arguments} for name, arguments in reference.calls]
        return METRICS[self.metric].expected(calls if self.metric == "tool_call_equal" and calls else reference.text)


def check_reference(sections: Sequence[RewardConfig], reference: Answer) -> None:
    """Check that the verifiers of sections can compare answers with a row's.

    Raises:
        ValueError: one cannot, or its extra is not installed.
    """
    for section in sections:
        if isinstance(section, VerifierConfig):
            Verifier(section.metric).expected(reference)


def _make(section: RewardConfig, stop: Callable[[], None]) -> Reward:
    match section:
        case VerifierConfig():
            return Verifier(section.metric)
        case ServerRewardConfig():
            return ServerReward(JsonServer("reward", "answers", section.url, section.timeout, section.retries, stop))
        case PluginRewardConfig():
            return _plugin(section.plugin)
    raise AssertionError(section)


def _plugin(name: str) -> Reward:
    found = entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none is"
        raise ValueError(f"no installed package offers the reward {name!r:.80} ({ENTRY_POINTS}; installed: {known})")
    try:
        loaded: Reward = found[name].load()
    except Exception as error:
        raise ValueError(f"the reward plugin {name} cannot be imported: {_described(error)}") from error

    def given(samples: Sequence[RewardSample]) -> Sequence[float]:
        try:
            return loaded(samples)
        except Exception as error:
            raise ValueError(f"the reward plugin {name} failed: {_described(error)}") from error

    return given


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _checked(name: str, rewards: Sequence[float], samples: Sequence[RewardSample]) -> list[float]:
    try:
        found = [float(value) for value in rewards]
    except (TypeError, ValueError):
        raise ValueError(f"the reward {name} gave something else than a list of numbers") from None
    if len(found) != len(samples):
        raise ValueError(f"the reward {name} gave {len(found)} values for {len(samples)} answers")
    if not all(map(isfinite, found)):
        raise ValueError(f"the reward {name} gave a value that is not finite")
    return found
