"""The trackers of a run: what they are told about it, and its id, by which a resumed run continues theirs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from seektune.io.atomic import write_atomically
from seektune.io.console import say
from seektune.io.json_file import as_json, read_json
from seektune.io.run_files import TRACKING
from seektune.io.secrets import without_secrets
from seektune.run.context import RunContext
from seektune.run.evals import Scores
from seektune.train.trackers.make import MAKERS, check_installed, make_tracker
from seektune.train.trackers.tracker import TrackedRun, Tracker
from seektune.train.trackers.tracker_thread import TrackerThread


@dataclass(frozen=True)
class RunTrackers:
    """The trackers of a run, of which none has begun its run yet."""

    run: TrackedRun
    trackers: Sequence[Tracker]


def make_trackers(run: RunContext) -> RunTrackers | None:
    """The trackers of `logging.to` besides TensorBoard, on rank 0; None on other processes, or if there are none.

    Raises:
        ValueError: a client is not installed, or cannot reach its server.
    """
    made: list[RunTrackers] = []
    run.mesh.ranks.first(lambda: made.extend(_made(run)))
    return made[0] if made else None


@contextmanager
def open_trackers(trackers: RunTrackers | None) -> Iterator[Sequence[TrackerThread]]:
    """Threads that send values to the trackers; in the end they send what is left, for a limited time."""
    if trackers is None:
        yield []
        return
    threads = [TrackerThread(tracker) for tracker in trackers.trackers]
    finished = False
    try:
        yield threads
        finished = True
    finally:
        for thread in threads:
            message = thread.close(finished, trackers.run.timeout)
            if message is not None:
                say(message)


def send_scores(threads: Sequence[TrackerThread], step: int, scores: Scores) -> None:
    """Send the metrics of tasks to trackers."""
    for name, score in scores.items():
        for thread in threads:
            thread.add(step, {f"{name}/{metric}": found.value for metric, found in score.metrics.items()})


def _made(run: RunContext) -> list[RunTrackers]:
    logging = run.recipe.logging
    names = [name for name in logging.to if name in MAKERS]
    if not names:
        return []
    check_installed(names)
    tracked = TrackedRun(
        id=_run_id(run),
        name=run.folder.absolute().name,
        project=logging.project,
        folder=run.folder,
        config=without_secrets(run.recipe.model_dump(mode="json")),
        offline=logging.offline,
        timeout=logging.flush_timeout,
    )
    return [RunTrackers(tracked, [make_tracker(name, tracked) for name in names])]


def write_tracking(folder: Path, run: TrackedRun) -> None:
    """Write the id into the run folder.

    Raises:
        OSError: writing failed.
    """
    write_atomically(folder / TRACKING, as_json({"id": run.id, "name": run.name, "project": run.project}))


def _run_id(run: RunContext) -> str:
    """The id in the folder of a run that resumes, or a new one."""
    file = run.folder / TRACKING
    if run.is_fresh or not file.is_file():
        return token_hex(5)
    found = read_json(file).get("id")
    if not isinstance(found, str) or not found.isalnum() or not found.isascii():
        raise ValueError(f"{file}: id must be letters and digits; remove the file to begin new runs at the trackers")
    return found
