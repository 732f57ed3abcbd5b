"""A reward server: answers are sent as JSON over HTTP, and their rewards come back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from seektune.io.json_file import is_number
from seektune.rewards.json_server import JsonServer
from seektune.rewards.sample import RewardSample


@dataclass(frozen=True)
class ServerReward:
    """The rewards that a server gives."""

    server: JsonServer

    def __call__(self, samples: Sequence[RewardSample]) -> list[float]:
        """As `Reward`.

        Raises:
            Interrupted: a signal asked to stop.
            OSError: the server cannot be reached, or answers with an error at each try.
            ValueError: its answer is not `{"rewards": [number, ...]}`.
        """
        found = self.server.post({"samples": [asdict(sample) for sample in samples]})
        rewards = found.get("rewards") if isinstance(found, dict) else None
        if not isinstance(rewards, list) or not all(map(is_number, rewards)):
            raise ValueError(f'the reward server {self.server.url} must answer with {{"rewards": [number, ...]}}')
        return [float(value) for value in rewards]
