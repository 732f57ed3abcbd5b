"""Starts a job's workers on this node and waits for them."""

import logging
import sys

from torch.distributed import DistError

from seektune.exit_codes import DONE
from seektune.launch.agent import Agent
from seektune.launch.job import JobEnded, LaunchConfig
from seektune.launch.rendezvous import Rendezvous
from seektune.launch.signal_relay import SignalRelay
from seektune.signals import SHOW_CURSOR


def launch(job: LaunchConfig) -> None:
    """Start the workers, forward signals to them, and return when all have exited.

    Raises:
        JobEnded: the exit code is not 0; it holds the code and a message of one line.
    """
    # the agent's own log repeats the message as tables
    logging.getLogger("torch.distributed.elastic").propagate = False
    logging.getLogger("torch.distributed.elastic").addHandler(logging.NullHandler())
    with SignalRelay() as signals:
        rendezvous = Rendezvous(job, signals)
        agent = Agent(job, rendezvous, signals)
        signals.on_second_signal = agent.kill
        try:
            agent.run()
        except JobEnded as ended:
            agent.status = ended.status
        except DistError:
            agent.status = rendezvous.node_lost(0)
        rendezvous.end(agent.status)
        rendezvous.shutdown()
    if agent.status.code != DONE:
        if sys.stdout.isatty():  # rank 0 was killed, perhaps behind a progress bar
            print(SHOW_CURSOR, end="", flush=True)
        raise JobEnded(agent.status)
