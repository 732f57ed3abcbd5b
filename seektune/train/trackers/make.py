"""Makes trackers by name; a client is imported only if it is asked for."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from seektune.train.config import TrackerName
from seektune.train.trackers.tracker import TrackedRun, Tracker


def check_installed(names: Sequence[TrackerName]) -> None:
    """Check that the clients of trackers are installed.

    Raises:
        ValueError: one is not; the message names its extra.
    """
    for name in names:
        found = find_spec(name)
        # a folder of that name, as Weights & Biases makes one, is a package without a file
        if found is None or found.origin is None:
            raise ValueError(f"logging.to: {name} is not installed: pip install 'seektune[{name}]'")


def make_tracker(name: TrackerName, run: TrackedRun) -> Tracker:
    """The tracker of a name; `tensorboard` is none, its events are written by `train.tensorboard`.

    Raises:
        ValueError: the client lacks what it needs to reach its server.
    """
    return MAKERS[name](run)


def _wandb(run: TrackedRun) -> Tracker:
    from seektune.train.trackers.wandb_tracker import WandbTracker

    return WandbTracker(run)


def _mlflow(run: TrackedRun) -> Tracker:
    from seektune.train.trackers.mlflow_tracker import MlflowTracker

    return MlflowTracker(run)


def _trackio(run: TrackedRun) -> Tracker:
    from seektune.train.trackers.trackio_tracker import TrackioTracker

    return TrackioTracker(run)


MAKERS: dict[str, Callable[[TrackedRun], Tracker]] = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
