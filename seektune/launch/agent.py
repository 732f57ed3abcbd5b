"""Torch's elastic agent with SeekTune's workers: decides which exits are failures and which of those restart all."""

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
from torch.distributed.elastic.agent.server.api import Worker as RankInfo

from seektune.exit_codes import USER_MISTAKE
from seektune.launch.job import CLEAN_EXITS, ExitStatus, LaunchConfig
from seektune.launch.rendezvous import POLL_INTERVAL, Rendezvous
from seektune.launch.signal_relay import SignalRelay
from seektune.launch.worker import MESSAGE_PREFIX, Worker
from seektune.launch.worker_group import LocalWorkerGroup, print_line

OTHER_NODE_FAILED = "a worker on another node failed"


class Agent(SimpleElasticAgent):
    """Starts, watches and stops the workers of this node; the superclass runs the rendezvous and the main loop."""

    def __init__(self, job: LaunchConfig, rendezvous: Rendezvous, signals: SignalRelay):
        spec = WorkerSpec(
            role="worker",
            local_world_size=job.processes,
            rdzv_handler=rendezvous,
            entrypoint=job.command[0],
            max_restarts=job.max_restarts,
            monitor_interval=POLL_INTERVAL,
        )
        super().__init__(spec)
        self._job = job
        self._rdzv = rendezvous
        self._signals = signals
        self._workers = LocalWorkerGroup([], job)
        self.status = ExitStatus()
        """How this node's workers last exited."""

    def kill(self) -> None:
        """Kill all workers; does not wait."""
        self._workers.kill()

    def _assign_worker_ranks(
        self, store: Store | None, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[RankInfo]:
        """Ranks need no communication: every node has as many workers, as the rendezvous checks."""
        local_world = spec.local_world_size
        ranks = range(group_rank * local_world, (group_rank + 1) * local_world)
        world = group_world_size * local_world
        return [RankInfo(number, rank, rank, world, world) for number, rank in enumerate(ranks)]

    def _exit_barrier(self) -> None:
        """Not needed: `_await_other_nodes` has waited for all nodes."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # rounds count the restarts of all nodes; the superclass counts only those that this node requested
        restarts = self._rdzv.round - 1
        self._remaining_restarts = self._job.max_restarts - restarts
        self.status = ExitStatus(message=OTHER_NODE_FAILED)
        workers = []
        for worker in worker_group.workers:
            environment = {
                **self._job.environment,
                "RANK": str(worker.global_rank),
                "LOCAL_RANK": str(worker.local_rank),
                "WORLD_SIZE": str(worker.world_size),
                "LOCAL_WORLD_SIZE": str(self._job.processes),
                "GROUP_RANK": str(self._job.node_rank),
                "GROUP_WORLD_SIZE": str(self._job.nodes),
                "MASTER_ADDR": str(worker_group.master_addr),
                "MASTER_PORT": str(worker_group.master_port),
                "TORCHELASTIC_RUN_ID": self._rdzv.get_run_id(),
                "TORCHELASTIC_RESTART_COUNT": str(restarts),
                "TORCHELASTIC_MAX_RESTARTS": str(self._job.max_restarts),
                "TORCHELASTIC_USE_AGENT_STORE": str(True),
            }
            environment.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
            environment.setdefault("OMP_NUM_THREADS", str(threads(self._job.processes)))
            reads = self._job.interactive and worker.global_rank == 0
            workers.append(Worker(self._job.command, environment, worker.global_rank, print_line, reads))
        self._workers = LocalWorkerGroup(workers, self._job)
        return {number: process.pid for number, process in enumerate(workers)}

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._signals.signal is not None and self._workers.forward(self._signals.signal):
            self._rdzv.broadcast_signal(self._signals.signal)
        status = self._workers.poll()
        if status is None:
            return RunResult(WorkerState.HEALTHY)
        if status.code in CLEAN_EXITS:
            return self._await_other_nodes(status, worker_group)
        self.status = status
        if status.code == USER_MISTAKE or self._signals.signal is not None:
            self._remaining_restarts = 0
        return RunResult(WorkerState.FAILED)

    def _await_other_nodes(self, status: ExitStatus, worker_group: WorkerGroup) -> RunResult:
        """Wait for the other nodes' workers: one of them may still fail, which restarts all."""
        code = self._rdzv.all_finished(status.code)
        if code is None:
            return RunResult(WorkerState.HEALTHY)
        self.status = ExitStatus(code, status.message)
        return RunResult(WorkerState.SUCCEEDED, {worker.global_rank: None for worker in worker_group.workers})

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        count = f"restart {self._rdzv.round} of {self._job.max_restarts}"
        print_line(f"{MESSAGE_PREFIX}{self.status.message}; {count}, from the last checkpoint")
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._workers.kill_and_wait()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._workers.kill_and_wait()


def threads(processes: int) -> int:
    """Threads per worker: its share of the cores that this process may use."""
    cores = min(psutil.cpu_count(logical=False) or 1, torch.get_num_threads())
    return max(1, cores // processes)
