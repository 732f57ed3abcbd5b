"""The flags of `train` about processes, nodes and dry runs."""

from dataclasses import dataclass
from math import isnan

from seektune.launch.job import LaunchConfig

PER_GPU = ("gpu", "auto")
"""Values of --nproc-per-node for one process per GPU; `auto` is one process where there is no GPU."""


@dataclass(frozen=True)
class LaunchFlags:
    """The flags about processes and nodes."""

    processes: str = "1"
    """Per node: a number, `gpu` or `auto`."""
    nodes: int = 1
    node_rank: int = 0
    endpoint: str | None = None
    max_restarts: int = LaunchConfig.max_restarts
    shutdown_timeout: float = LaunchConfig.grace
    """Seconds."""

    def count(self) -> int:
        """Processes on this node.

        Raises:
            ValueError: one per GPU, but there is no GPU.
        """
        if self.processes not in PER_GPU:
            return int(self.processes)
        if (gpus := count_gpus()) == 0 and self.processes == "gpu":
            raise ValueError("--nproc-per-node=gpu: this machine has no GPU; give a number of processes")
        return max(gpus, 1)

    def check(self) -> None:
        """Check that the flags agree.

        Raises:
            ValueError: they do not.
        """
        if self.processes not in PER_GPU and not (self.processes.isdecimal() and int(self.processes) > 0):
            raise ValueError(f"--nproc-per-node={self.processes} must be a positive number, gpu or auto")
        if self.node_rank >= self.nodes:
            raise ValueError(f"--node-rank={self.node_rank} must be less than --nnodes={self.nodes}; ranks start at 0")
        if isnan(self.shutdown_timeout):
            raise ValueError("--shutdown-timeout=nan must be a number of seconds: workers need that time to save")
        if self.nodes == 1:
            return
        host, _, port = (self.endpoint or "").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(
                f"--nnodes={self.nodes} needs --rdzv-endpoint=HOST:PORT: node 0 and a free port on it"
                + (f", not {self.endpoint}" if self.endpoint else "")
            )


@dataclass(frozen=True)
class DryRunFlags:
    """The flags of a dry run."""

    enabled: bool = False
    world: int | None = None
    """Processes of the job; None: those of the launch flags, or the fewest that the recipe's layout takes."""
    ranks: str = ""
    """Comma-separated; empty: the first rank of each pipeline stage."""
    as_json: bool = False

    def check(self) -> None:
        """Check that the flags agree.

        Raises:
            ValueError: they do not.
        """
        if not self.enabled and self != DryRunFlags():
            raise ValueError("--world-size, --ranks and --json need --dry-run")
        if not all(number.strip().isdecimal() for number in self.ranks.split(",") if self.ranks):
            raise ValueError(f"--ranks={self.ranks} must be comma-separated numbers, such as --ranks=0,5,127")

    def rank_list(self) -> list[int]:
        """The ranks as numbers; empty as `ranks` is."""
        return [int(number) for number in self.ranks.split(",")] if self.ranks else []


def count_gpus() -> int:
    """GPUs that torch finds on this machine; importing torch takes seconds."""
    from torch.cuda import device_count

    return device_count()
