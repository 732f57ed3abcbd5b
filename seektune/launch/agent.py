"""Torch's elastic agent with this house's workers: which ends are failures, and which of those start all again."""

import signal
from typing import Any

import psutil
import torch
from torch.distributed import Store
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.api import Worker as Place

from seektune.exit_codes import USER_MISTAKE
from seektune.launch.job import ORDERLY, Ending, LaunchConfig
from seektune.launch.rendezvous import TICK, Rendezvous
from seektune.launch.signal_relay import SignalRelay
from seektune.launch.worker import SPEAKER, Worker
from seektune.launch.worker_group import LocalWorkerGroup, show

ELSEWHERE = "a worker of another node failed"


class Agent(SimpleElasticAgent):
    """Starts, watches and stops the workers of this node; the superclass numbers them, meets other nodes, and loops."""

    def __init__(self, job: LaunchConfig, nodes: Rendezvous, stop: SignalRelay):
        spec = WorkerSpec(
            role="worker",
            local_world_size=job.processes,
            rdzv_handler=nodes,
            entrypoint=job.command[0],
            max_restarts=job.max_restarts,
            monitor_interval=TICK,
        )
        super().__init__(spec)
        self._job = job
        self._nodes = nodes
        self._stop = stop
        self._workers = LocalWorkerGroup([], job)
        self.ending = Ending()
        """How this node's workers ended last."""

    def kill(self) -> None:
        """End all workers at once; does not wait."""
        self._workers.kill()

    def _assign_worker_ranks(
        self, store: Store | None, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Place]:
        """Every node has as many workers, as nodes with other words are refused; nothing has to be asked."""
        each = spec.local_world_size
        ranks = range(group_rank * each, (group_rank + 1) * each)
        world = group_world_size * each
        return [Place(number, rank, rank, world, world) for number, rank in enumerate(ranks)]

    def _exit_barrier(self) -> None:
        """`_part` has waited for all nodes."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # rounds count the restarts of all nodes, the superclass only those that this node asked for
        restarts = self._nodes.round - 1
        self._remaining_restarts = self._job.max_restarts - restarts
        self.ending = Ending(sentence=ELSEWHERE)
        workers = []
        for place in worker_group.workers:
            environment = {
                **self._job.environment,
                "RANK": str(place.global_rank),
                "LOCAL_RANK": str(place.local_rank),
                "WORLD_SIZE": str(place.world_size),
                "LOCAL_WORLD_SIZE": str(self._job.processes),
                "GROUP_RANK": str(self._job.node_rank),
                "GROUP_WORLD_SIZE": str(self._job.nodes),
                "MASTER_ADDR": str(worker_group.master_addr),
                "MASTER_PORT": str(worker_group.master_port),
                "TORCHELASTIC_RUN_ID": self._nodes.get_run_id(),
                "TORCHELASTIC_RESTART_COUNT": str(restarts),
                "TORCHELASTIC_MAX_RESTARTS": str(self._job.max_restarts),
                "TORCHELASTIC_USE_AGENT_STORE": str(True),
            }
            environment.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
            environment.setdefault("OMP_NUM_THREADS", str(threads(self._job.processes)))
            workers.append(Worker(self._job.command, environment, place.global_rank, show))
        self._workers = LocalWorkerGroup(workers, self._job)
        return {number: worker.pid for number, worker in enumerate(workers)}

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._stop.signal is not None and self._workers.ask(self._stop.signal):
            self._nodes.pass_on(self._stop.signal)
        ending = self._workers.look()
        if ending is None:
            return RunResult(WorkerState.HEALTHY)
        if ending.code in ORDERLY:
            return self._part(ending, worker_group)
        self.ending = ending
        if ending.code == USER_MISTAKE or self._stop.signal is not None:
            self._remaining_restarts = 0
        return RunResult(WorkerState.FAILED)

    def _part(self, ending: Ending, worker_group: WorkerGroup) -> RunResult:
        """Wait for the other nodes' workers: one of them may still fail, and start all again."""
        code = self._nodes.finished(ending.code)
        if code is None:
            return RunResult(WorkerState.HEALTHY)
        self.ending = Ending(code, ending.sentence)
        return RunResult(WorkerState.SUCCEEDED, {worker.global_rank: None for worker in worker_group.workers})

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        count = f"restart {self._nodes.round} of {self._job.max_restarts}"
        show(f"{SPEAKER}{self.ending.sentence}; {count}, from the last checkpoint")
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._workers.end()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._workers.end()


def threads(processes: int) -> int:
    """Each worker's share of the cores that this process may use; two threads on one core gain nothing."""
    cores = min(psutil.cpu_count(logical=False) or 1, torch.get_num_threads())
    return max(1, cores // processes)
