"""Start a job's workers on this node and stay until they ended."""

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
    """Start the workers, pass signals on to them, and leave when the last one has.

    Raises:
        JobEnded: with the exit code and the one sentence that says why, unless all workers ended well.
    """
    # the agent's own reports repeat in tables what the one sentence says
    logging.getLogger("torch.distributed.elastic").propagate = False
    logging.getLogger("torch.distributed.elastic").addHandler(logging.NullHandler())
    with SignalRelay() as stop:
        nodes = Rendezvous(job, stop)
        agent = Agent(job, nodes, stop)
        stop.at_once = agent.kill
        try:
            agent.run()
        except JobEnded as ended:
            agent.ending = ended.ending
        except DistError:
            agent.ending = nodes.lost(0)
        nodes.end(agent.ending)
        nodes.shutdown()
    if agent.ending.code != DONE:
        if sys.stdout.isatty():  # rank 0 was killed, perhaps behind a progress bar
            print(SHOW_CURSOR, end="", flush=True)
        raise JobEnded(agent.ending)
