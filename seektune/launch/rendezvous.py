"""The launchers of one job, one per node, which meet in a store that node 0 keeps and hear there of each other's ends.

Torch's own meetings number nodes by address or do not notice a node's end; here `--node-rank` holds, and one does.
"""

import json
import signal
import socket
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from time import monotonic, sleep

from torch.distributed import DistError, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from seektune.launch.job import FAILURE, USER_MISTAKE, Ending, JobEnded, LaunchConfig, stopped_early
from seektune.launch.signal_relay import SignalRelay

TICK = 0.1
"""Seconds between two looks."""
PATIENCE = 900.0
"""Seconds for which a node waits for the others to start."""
BEAT = 1.0
LOST_AFTER = 15.0
"""Seconds between a node's signs of life, and without one until it counts as lost; so does a store that is silent."""
PARTING = 5.0
"""Seconds for which node 0 keeps the store open for others to read how it ended."""


class Rendezvous(RendezvousHandler):
    """One node's view of all. Each start or restart of the workers is a round, in which every node takes part.

    Raises, wherever it waits or looks:
        JobEnded: another node ended the job or is lost, a signal came before workers started, or nodes do not match.
        DistError: node 0 is lost.
    """

    def __init__(self, job: LaunchConfig, stop: SignalRelay):
        self._job = job
        self._stop = stop
        self.round = 0
        self._beaten = 0.0
        self._beats = 0
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._host, port = _address(job)
        self._store = self._open(port)
        self._workers_store: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until every node is here; the workers get a store of their own for this round."""
        self.round += 1
        here = f"{self.round}/here/{self._job.node_rank}"
        others = self._keys("here")
        if self._store.add(f"{here}/times", 1) > 1:
            raise JobEnded(Ending(USER_MISTAKE, f"another node was started with --node-rank {self._job.node_rank} too"))
        if self._job.node_rank == 0:
            self._workers_store = _store(self._host, 0, serve=True)
            self._store.set(f"{self.round}/port", str(self._workers_store.port))
        # a sign of life first: a node that is here and never gave one could not be missed
        self._beat()
        self._store.set(here, self._job.identity)
        self._store.set(f"{self.round}/begun", "yes")
        begin = monotonic()
        while not self._store.check(others):
            self._look()
            self._refuse_strangers()
            if self._stop.signal is not None:
                raise JobEnded(stopped_early(self._stop.signal))
            if monotonic() - begin > PATIENCE:
                raise JobEnded(Ending(FAILURE, self._who_is_missing()))
            sleep(TICK)
        self._refuse_strangers()
        port = int(self._store.get(f"{self.round}/port"))
        workers_store = RendezvousStoreInfo(self._host, port)
        return RendezvousInfo(self._store, self._job.node_rank, self._job.nodes, workers_store)

    def num_nodes_waiting(self) -> int:
        """1 where another node began the next round, as workers of its failed."""
        self._look()
        return int(self._store.check([f"{self.round + 1}/begun"]))

    def finished(self, code: int) -> int | None:
        """Say that this node's workers left in order; the exit code of all nodes once that is true of each."""
        self._store.set(f"{self.round}/finished/{self._job.node_rank}", str(code))
        finished = self._keys("finished")
        if not self._store.check(finished):
            return None
        return max(int(self._store.get(key)) for key in finished)

    def pass_on(self, number: int) -> None:
        """Let the other nodes' workers have a signal too."""
        self._store.set("signal", str(number))

    def end(self, ending: Ending) -> None:
        """End the job on every node; the first ending counts."""
        with suppress(DistError):
            self._store.compare_set("end", "", json.dumps(asdict(ending)))

    def shutdown(self) -> bool:
        """Leave; node 0 as the last, because the store ends with it."""
        with suppress(DistError):
            self._store.set(f"left/{self._job.node_rank}", "yes")
            begin = monotonic()
            while self._job.node_rank == 0 and monotonic() - begin < PARTING and not self._is_alone():
                sleep(TICK)
        return True

    @property
    def use_agent_store(self) -> bool:
        """Workers use the round's store instead of opening one, so that no port can be taken in between."""
        return True

    def get_backend(self) -> str:
        """A name for torch's records."""
        return "seektune"

    def get_run_id(self) -> str:
        """Nothing is shared with another job."""
        return "seektune"

    def is_closed(self) -> bool:
        """Whether the job ended somewhere."""
        return self._store.check(["end"])

    def set_closed(self) -> None:
        """`end` says why."""
        self.end(Ending())

    def _open(self, port: int) -> TCPStore:
        begin = monotonic()
        while self._job.node_rank and not _answers(self._host, port):
            if self._stop.signal is not None:
                raise JobEnded(stopped_early(self._stop.signal))
            if monotonic() - begin > PATIENCE:
                raise JobEnded(Ending(FAILURE, f"node 0 did not answer at {self._job.endpoint} for {PATIENCE:g} s"))
            sleep(TICK)
        try:
            return _store(self._host, port, self._job.node_rank == 0)
        except DistError as error:
            raise JobEnded(
                Ending(FAILURE, f"--rdzv-endpoint {self._job.endpoint} cannot be opened on this node: {error}")
            ) from None

    def _look(self) -> None:
        """Hear of endings, lost nodes and signals elsewhere, and give a sign of life."""
        if self._job.nodes == 1:
            return
        if self._store.check(["end"]):
            raise JobEnded(Ending(**json.loads(self._store.get("end"))))
        if self._stop.signal is None and self._store.check(["signal"]):
            self._stop.signal = signal.Signals(int(self._store.get("signal")))
        if monotonic() - self._beaten > BEAT:
            self._beat()

    def _beat(self) -> None:
        self._beaten = monotonic()
        self._beats = self._beats + 1
        self._store.set(f"alive/{self._job.node_rank}", str(self._beats))
        if self._job.node_rank:
            return
        for node in range(1, self._job.nodes):
            if not self._store.check([f"alive/{node}"]):
                continue
            beat = self._store.get(f"alive/{node}")
            if node not in self._heard or self._heard[node][0] != beat:
                self._heard[node] = beat, monotonic()
            elif monotonic() - self._heard[node][1] > LOST_AFTER:
                raise JobEnded(self.lost(node))

    def lost(self, node: int) -> Ending:
        """How the job ends when a node is gone."""
        return Ending(
            FAILURE, f"node {node} does not answer any more; the other nodes were stopped; {self._job.advice}"
        )

    def _is_alone(self) -> bool:
        """Whether every other node that came has left, or is lost."""
        lost = {node for node, (_, when) in self._heard.items() if monotonic() - when > LOST_AFTER}
        came = [node for node, key in enumerate(self._keys("here")) if node not in lost and self._store.check([key])]
        return self._store.check([f"left/{node}" for node in came])

    def _refuse_strangers(self) -> None:
        """Node 0 looks at all who came, and each of them at node 0."""
        me = self._job.node_rank
        for node, key in enumerate(self._keys("here")):
            if 0 in (node, me) and self._store.check([key]) and self._store.get(key).decode() != self._job.identity:
                raise JobEnded(
                    Ending(
                        USER_MISTAKE,
                        f"node {me or node} was started with another recipe, override or number of processes than "
                        "node 0; start all nodes with the same words except --node-rank",
                    )
                )

    def _who_is_missing(self) -> str:
        missing = [str(node) for node, key in enumerate(self._keys("here")) if not self._store.check([key])]
        return f"waited {PATIENCE:g} s at {self._job.endpoint} for node {', '.join(missing)} of {self._job.nodes}"

    def _keys(self, what: str) -> list[str]:
        return [f"{self.round}/{what}/{node}" for node in range(self._job.nodes)]


def _address(job: LaunchConfig) -> tuple[str, int]:
    """Where node 0 keeps the store; on one node any free port does."""
    if job.nodes == 1:
        return "127.0.0.1", 0
    host, _, port = job.endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def _store(host: str, port: int, serve: bool) -> TCPStore:
    return TCPStore(host, port, is_master=serve, timeout=timedelta(seconds=LOST_AFTER), wait_for_workers=False)


def _answers(host: str, port: int) -> bool:
    """Asked before torch's own client, which cannot be interrupted while it waits."""
    try:
        socket.create_connection((host, port), timeout=2.0).close()
    except OSError:
        return False
    return True
