"""What a launcher is asked to start, and how that ended."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from seektune.exit_codes import DONE, RESUME_ME

ORDERLY = (DONE, RESUME_ME)
"""Exit codes of a worker that left because it was time."""


@dataclass(frozen=True)
class LaunchConfig:
    """The same command on every process of every node."""

    command: tuple[str, ...]
    """What a worker runs."""
    environment: Mapping[str, str]
    """What it finds in its environment, beside its place among the others."""
    processes: int
    """Workers on each node."""
    nodes: int = 1
    node_rank: int = 0
    """This node's number; rank 0 lives on node 0."""
    endpoint: str = ""
    """HOST:PORT of node 0, where launchers meet; unused on one node."""
    max_restarts: int = 0
    """How often all workers are started again after one failed."""
    grace: float = 600.0
    """Seconds that workers have for saving when they are asked to stop."""
    identity: str = ""
    """Equal on all nodes, or they do not belong to one job."""
    advice: str = "the same command resumes from the last checkpoint"
    """What to do after a worker was killed."""


@dataclass(frozen=True)
class Ending:
    """How workers ended: an exit code, and a sentence unless all is well."""

    code: int = DONE
    sentence: str = ""


def stopped_early(request: signal.Signals) -> Ending:
    """How a job ends that is asked to stop before its workers train."""
    return Ending(RESUME_ME, f"stopped by {request.name} before training began; the same command starts again")


class JobEnded(Exception):  # noqa: N818 - it may have ended on request
    """The job did not end with 0."""

    def __init__(self, ending: Ending):
        super().__init__(ending.sentence)
        self.ending = ending
