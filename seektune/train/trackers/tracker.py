"""The interface of experiment trackers, and what they are told about a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it."""

    id: str
    """Letters and digits; the same when the run resumes, so that a tracker continues its run."""
    name: str
    project: str
    folder: Path
    """The run folder."""
    config: Mapping[str, Any]
    """The recipe, without secrets."""
    offline: bool = False
    """Write files instead of sending values to a server."""
    timeout: float = 30.0
    """Seconds that a client may wait for its server when the run begins or ends."""


@dataclass(frozen=True)
class TrackedValues:
    """Values by name at a step."""

    step: int
    values: Mapping[str, float]


class Tracker(Protocol):
    """The client of a tracker for one run. Its methods may wait for a server and raise any exception."""

    name: str
    """As `logging.to` has it."""

    def open(self) -> None:
        """Begin the run, or continue it; called again if it failed."""

    def log(self, records: Sequence[TrackedValues]) -> None:
        """Send values."""

    def close(self, finished: bool) -> None:
        """End the run and send what is left; `finished` is false for a run that stopped early."""
