"""A reward server: answers are sent as JSON over HTTP, and their rewards come back."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from seektune.io.strict_json import parse_json
from seektune.io.text import on_one_line
from seektune.rewards.sample import RewardSample

MOST_BYTES = 64 * 2**20
"""Maximum size of a server's answer."""
LONGEST_PAUSE = 30
"""Maximum seconds between two tries."""


@dataclass(frozen=True)
class ServerReward:
    """The rewards that a server gives."""

    url: str
    timeout: float
    """Seconds without a byte from the server after which a try ends."""
    retries: int
    """Further tries after a failed one."""
    stop: Callable[[], None] = lambda: None
    """Called before each try and each second of a pause; may raise `Interrupted`."""
    sleep: Callable[[float], None] = time.sleep

    def __call__(self, samples: Sequence[RewardSample]) -> list[float]:
        """As `Reward`.

        Raises:
            Interrupted: `stop` raised it.
            OSError: the server cannot be reached, or answers with an error at each try.
            ValueError: its answer is not `{"rewards": [number, ...]}`.
        """
        body = json.dumps({"samples": [asdict(sample) for sample in samples]}).encode()
        for attempt in range(self.retries):
            try:
                return self._once(body)
            except OSError:
                self._pause(min(2 ** min(attempt, 8), LONGEST_PAUSE))
        try:
            return self._once(body)
        except OSError as error:
            tries = f"after {self.retries + 1} tries" if self.retries else "at the only try"
            raise OSError(f"the reward server {self.url} failed {tries}: {on_one_line(str(error))[:160]}") from None

    def _pause(self, seconds: int) -> None:
        for _ in range(seconds):
            self.stop()
            self.sleep(1.0)
        self.stop()

    def _once(self, body: bytes) -> list[float]:
        request = Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self.timeout) as answer:
                return self._rewards(answer.read(MOST_BYTES))
        except HTTPError as error:
            if error.code < 500:
                raise ValueError(f"the reward server {self.url} refuses the answers: HTTP {error.code}") from None
            raise
        except HTTPException as error:
            raise OSError(f"its answer broke off ({type(error).__name__})") from None

    def _rewards(self, answer: bytes) -> list[float]:
        try:
            found = parse_json(answer)
        except ValueError as error:
            raise ValueError(f"the reward server {self.url} answered with something else than JSON: {error}") from None
        rewards = found.get("rewards") if isinstance(found, dict) else None
        if not isinstance(rewards, list) or not all(type(value) in (int, float) for value in rewards):
            raise ValueError(f'the reward server {self.url} must answer with {{"rewards": [number, ...]}}')
        return [float(value) for value in rewards]
