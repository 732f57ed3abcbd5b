"""What a launcher starts, and how the job ended."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from seektune.exit_codes import DONE, RESUME_ME

CLEAN_EXITS = (DONE, RESUME_ME)
"""Exit codes of a worker that did not fail."""


@dataclass(frozen=True)
class LaunchConfig:
    """A job that runs the same command in every process of every node."""

    command: tuple[str, ...]
    """The command line of a worker."""
    environment: Mapping[str, str]
    """Environment of a worker, to which its rank variables are added."""
    processes: int
    """Workers on each node."""
    nodes: int = 1
    node_rank: int = 0
    """This node's number; rank 0 runs on node 0."""
    endpoint: str = ""
    """HOST:PORT of node 0 for the rendezvous of launchers; unused on one node."""
    max_restarts: int = 0
    """How often all workers are restarted after a failure."""
    grace: float = 600.0
    """Seconds that workers have to save and exit after a signal."""
    identity: str = ""
    """Must be equal on all nodes."""
    advice: str = "the same command resumes from the last checkpoint"
    """Ends the message after a worker was killed."""
    interactive: bool = False
    """Whether rank 0 reads the launcher's standard input; no worker reads any otherwise."""


@dataclass(frozen=True)
class ExitStatus:
    """How workers exited: an exit code, and a message unless it is 0."""

    code: int = DONE
    message: str = ""


def stopped_while_starting(request: signal.Signals) -> ExitStatus:
    """The status of a job that a signal stopped before its workers began."""
    return ExitStatus(RESUME_ME, f"stopped by {request.name} while starting; the same command starts again")


class JobEnded(Exception):  # noqa: N818 - a stop on request is not an error
    """The job ended with an exit code other than 0."""

    def __init__(self, status: ExitStatus):
        super().__init__(status.message)
        self.status = status
