"""MLflow, by its own client (extra `mlflow`)."""

from collections.abc import Iterator, Mapping, Sequence
from time import time
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from seektune.io.run_files import MLFLOW
from seektune.train.trackers.tracker import TrackedRun, TrackedValues

TAG = "seektune_run"
"""Tag with the run's own id, by which a resumed run finds its MLflow run."""
MOST_METRICS = 1000
"""Metrics of one request."""
MOST_PARAMS = 100
"""Parameters of one request."""
LONGEST_PARAM = 500
"""Characters of a parameter's value; servers before MLflow 2.7 take no more."""


class MlflowTracker:
    """A run of the server of MLFLOW_TRACKING_URI, or of a database in the run folder."""

    name = "mlflow"

    def __init__(self, run: TrackedRun):
        self._run = run
        self._client: Any = None
        self._id = ""

    def open(self) -> None:
        """As `Tracker`."""
        self._client = MlflowClient(
            f"sqlite:///{(self._run.folder / MLFLOW).absolute()}" if self._run.offline else None
        )
        found = self._client.get_experiment_by_name(self._run.project)
        experiment = self._client.create_experiment(self._run.project) if found is None else found.experiment_id
        begun = self._client.search_runs([experiment], f"tags.{TAG} = '{self._run.id}'", max_results=1)
        if begun:
            self._id = begun[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {TAG: self._run.id}
        self._id = self._client.create_run(experiment, run_name=self._run.name, tags=tags).info.run_id
        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in _flat(self._run.config)]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + MOST_PARAMS])

    def log(self, records: Sequence[TrackedValues]) -> None:
        """As `Tracker`."""
        now = int(1000 * time())
        metrics = [Metric(name, value, now, each.step) for each in records for name, value in each.values.items()]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + MOST_METRICS])

    def close(self, finished: bool) -> None:
        """As `Tracker`."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested sections, by dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
