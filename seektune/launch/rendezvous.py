"""Rendezvous of a job's launchers, one per node, in a TCPStore on node 0; they also exchange how the job ends there.

Torch's own rendezvous backends number nodes by address or do not notice a lost node; this one uses `--node-rank` and
heartbeats.
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

from seektune.exit_codes import FAILURE, USER_MISTAKE
from seektune.launch.job import ExitStatus, JobEnded, LaunchConfig, stopped_while_starting
from seektune.launch.signal_relay import SignalRelay

POLL_INTERVAL = 0.1
"""Seconds between two polls of the store."""
JOIN_TIMEOUT = 900.0
"""Seconds that a node waits for the others to join."""
LOOPBACK = "127.0.0.1"
HEARTBEAT_INTERVAL = 1.0
HEARTBEAT_TIMEOUT = 15.0
"""Seconds between a node's heartbeats, and without one until it counts as lost; also the store's timeout."""
STORE_LINGER = 5.0
"""Seconds for which node 0 keeps the store open, so that others can read how the job ended."""


class Rendezvous(RendezvousHandler):
    """One node's side of the rendezvous. Each start or restart of the workers is a round that every node joins.

    Raises, wherever it waits or polls:
        JobEnded: another node ended the job or is lost, a signal arrived before workers started, or nodes do not match.
        DistError: node 0 is lost.
    """

    def __init__(self, job: LaunchConfig, signals: SignalRelay):
        self._job = job
        self._signals = signals
        self.round = 0
        self._last_beat = 0.0
        self._beats = 0
        self._peer_beats: dict[int, tuple[bytes, float]] = {}
        self._host, port = _address(job)
        self._store = self._open(port)
        self._workers_store: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until every node has joined; the workers get a store of their own for this round."""
        self.round += 1
        own_key = f"{self.round}/joined/{self._job.node_rank}"
        all_keys = self._keys("joined")
        if self._store.add(f"{own_key}/count", 1) > 1:
            message = f"more than one node was started with --node-rank {self._job.node_rank}"
            raise JobEnded(ExitStatus(USER_MISTAKE, message))
        if self._job.node_rank == 0:
            self._workers_store = _store(self._host, 0, serve=True)
            self._store.set(f"{self.round}/port", str(self._workers_store.port))
        # a heartbeat first: a node that never sent one could not be missed
        self._beat()
        self._store.set(own_key, self._job.identity)
        self._store.set(f"{self.round}/started", "yes")
        start = monotonic()
        while not self._store.check(all_keys):
            self._poll()
            self._check_identities()
            if self._signals.signal is not None:
                raise JobEnded(stopped_while_starting(self._signals.signal))
            if monotonic() - start > JOIN_TIMEOUT:
                raise JobEnded(ExitStatus(FAILURE, self._missing_message()))
            sleep(POLL_INTERVAL)
        self._check_identities()
        port = int(self._store.get(f"{self.round}/port"))
        workers_store = RendezvousStoreInfo(self._host, port)
        return RendezvousInfo(self._store, self._job.node_rank, self._job.nodes, workers_store)

    def num_nodes_waiting(self) -> int:
        """1 if another node has started the next round because its workers failed, else 0."""
        self._poll()
        return int(self._store.check([f"{self.round + 1}/started"]))

    def all_finished(self, code: int) -> int | None:
        """Report that this node's workers finished with `code`; the job's exit code once all nodes have, else None."""
        self._store.set(f"{self.round}/finished/{self._job.node_rank}", str(code))
        finished = self._keys("finished")
        if not self._store.check(finished):
            return None
        return max(int(self._store.get(key)) for key in finished)

    def broadcast_signal(self, number: int) -> None:
        """Send a signal to the other nodes' launchers."""
        self._store.set("signal", str(number))

    def end(self, status: ExitStatus) -> None:
        """End the job on every node; the first status that a node reports counts."""
        with suppress(DistError):
            self._store.compare_set("end", "", json.dumps(asdict(status)))

    def shutdown(self) -> bool:
        """Leave the job; node 0 leaves last because it holds the store."""
        with suppress(DistError):
            self._store.set(f"left/{self._job.node_rank}", "yes")
            start = monotonic()
            while self._job.node_rank == 0 and monotonic() - start < STORE_LINGER and not self._others_left():
                sleep(POLL_INTERVAL)
        return True

    @property
    def use_agent_store(self) -> bool:
        """Workers use the round's store instead of opening one, so that no other process can take its port."""
        return True

    def get_backend(self) -> str:
        """The name in torch's logs."""
        return "seektune"

    def get_run_id(self) -> str:
        """A constant: no store is shared with another job."""
        return "seektune"

    def is_closed(self) -> bool:
        """Whether the job has ended on some node."""
        return self._store.check(["end"])

    def set_closed(self) -> None:
        """End the job, if `end` has not."""
        self.end(ExitStatus())

    def _open(self, port: int) -> TCPStore:
        start = monotonic()
        while self._job.node_rank and not _is_reachable(self._host, port):
            if self._signals.signal is not None:
                raise JobEnded(stopped_while_starting(self._signals.signal))
            if monotonic() - start > JOIN_TIMEOUT:
                message = f"node 0 did not answer at {self._job.endpoint} for {JOIN_TIMEOUT:g} s"
                raise JobEnded(ExitStatus(FAILURE, message))
            sleep(POLL_INTERVAL)
        try:
            return _store(self._host, port, self._job.node_rank == 0)
        except (DistError, OSError) as error:
            raise JobEnded(
                ExitStatus(FAILURE, f"--rdzv-endpoint {self._job.endpoint} cannot be opened on this node: {error}")
            ) from None

    def _poll(self) -> None:
        """Check for the job's end, lost nodes and signals on other nodes, and send a heartbeat."""
        if self._job.nodes == 1:
            return
        if self._store.check(["end"]):
            raise JobEnded(ExitStatus(**json.loads(self._store.get("end"))))
        if self._signals.signal is None and self._store.check(["signal"]):
            self._signals.signal = signal.Signals(int(self._store.get("signal")))
        if monotonic() - self._last_beat > HEARTBEAT_INTERVAL:
            self._beat()

    def _beat(self) -> None:
        self._last_beat = monotonic()
        self._beats = self._beats + 1
        self._store.set(f"alive/{self._job.node_rank}", str(self._beats))
        if self._job.node_rank:
            return
        for node in range(1, self._job.nodes):
            if not self._store.check([f"alive/{node}"]):
                continue
            beat = self._store.get(f"alive/{node}")
            if node not in self._peer_beats or self._peer_beats[node][0] != beat:
                self._peer_beats[node] = beat, monotonic()
            elif monotonic() - self._peer_beats[node][1] > HEARTBEAT_TIMEOUT:
                raise JobEnded(self.node_lost(node))

    def node_lost(self, node: int) -> ExitStatus:
        """The status of the job when a node is lost."""
        return ExitStatus(FAILURE, f"node {node} is not responding; the other nodes were stopped; {self._job.advice}")

    def _others_left(self) -> bool:
        """Whether every other node that joined has left or is lost."""
        lost = {node for node, (_, when) in self._peer_beats.items() if monotonic() - when > HEARTBEAT_TIMEOUT}
        joined = [
            node for node, key in enumerate(self._keys("joined")) if node not in lost and self._store.check([key])
        ]
        return self._store.check([f"left/{node}" for node in joined])

    def _check_identities(self) -> None:
        """Node 0 checks every node that joined, and each other node checks node 0."""
        own = self._job.node_rank
        for node, key in enumerate(self._keys("joined")):
            if 0 in (node, own) and self._store.check([key]) and self._store.get(key).decode() != self._job.identity:
                raise JobEnded(
                    ExitStatus(
                        USER_MISTAKE,
                        f"node {own or node} was started with a different recipe, override or number of processes than "
                        "node 0; use the same command on all nodes, except for --node-rank",
                    )
                )

    def _missing_message(self) -> str:
        missing = [str(node) for node, key in enumerate(self._keys("joined")) if not self._store.check([key])]
        nodes = f"node {', '.join(missing)} of {self._job.nodes}"
        return f"{nodes} did not join at {self._job.endpoint} within {JOIN_TIMEOUT:g} s"

    def _keys(self, event: str) -> list[str]:
        return [f"{self.round}/{event}/{node}" for node in range(self._job.nodes)]


def _address(job: LaunchConfig) -> tuple[str, int]:
    """Address of the store on node 0; on one node any free port."""
    if job.nodes == 1:
        return LOOPBACK, 0
    host, _, port = job.endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def _store(host: str, port: int, serve: bool) -> TCPStore:
    """A store of this node, or a client of another's. On one node nobody else reaches it: a store has no password."""
    timeout = timedelta(seconds=HEARTBEAT_TIMEOUT)
    if not serve or host != LOOPBACK:
        return TCPStore(host, port, is_master=serve, timeout=timeout, wait_for_workers=False)
    with socket.create_server((host, port)) as bound:
        port = bound.getsockname()[1]
        listening = bound.detach()  # the store closes it
    return TCPStore(host, port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=listening)


def _is_reachable(host: str, port: int) -> bool:
    """Checked before torch's own client connects, whose wait cannot be interrupted."""
    try:
        socket.create_connection((host, port), timeout=2.0).close()
    except OSError:
        return False
    return True
