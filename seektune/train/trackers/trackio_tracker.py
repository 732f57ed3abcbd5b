"""trackio, by its own client (extra `trackio`)."""

import os
from collections.abc import Sequence
from typing import Any

import trackio

from seektune.train.trackers.tracker import TrackedRun, TrackedValues

SERVERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Variables that make the client send values to a Space or a server; without them it writes to its local database."""


class TrackioTracker:
    """A run of trackio, in its local database unless the environment names a Space or a server."""

    name = "trackio"

    def __init__(self, run: TrackedRun):
        self._run = run
        self._client: Any = None
        if run.offline:
            for variable in SERVERS:
                os.environ.pop(variable, None)

    def open(self) -> None:
        """As `Tracker`; runs are resumed by name, so the name has the id."""
        self._client = trackio.init(
            self._run.project,
            name=f"{self._run.name}-{self._run.id}",
            config=dict(self._run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, records: Sequence[TrackedValues]) -> None:
        """As `Tracker`."""
        for record in records:
            self._client.log(dict(record.values), step=record.step)

    def close(self, finished: bool) -> None:
        """As `Tracker`; trackio does not distinguish how a run ended."""
        self._client.finish()
