"""Runs a command that decodes in this process, in workers that a launcher starts, or as one of those workers."""

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from seektune.cli import launch_flags
from seektune.cli.launch_flags import LaunchFlags
from seektune.cli.start import WORKER_VARIABLES
from seektune.cli.train import NodeRank, Nodes, ProcessesPerNode, RendezvousEndpoint
from seektune.launch.job import LaunchConfig
from seektune.signals import Interrupted, Interruption

if TYPE_CHECKING:
    from seektune.generate.processes import DecodeProcesses

AUTO = "auto"
GRACE = 10.0
"""Seconds that workers have to end after a signal; there is nothing to save."""
RunDecoding: TypeAlias = Callable[["DecodeProcesses"], None]
"""What every process runs."""


@dataclass(frozen=True)
class DecodeFlags:
    """The flags of a command that decodes, about processes."""

    launch: LaunchFlags
    ep: str = AUTO
    pp: int = 1

    def ep_size(self) -> int | None:
        """Processes over which the experts are spread; None for `auto`.

        Raises:
            ValueError: the flag is neither a positive number nor `auto`.
        """
        if self.ep == AUTO:
            return None
        if not self.ep.isdecimal() or int(self.ep) == 0:
            raise ValueError(f"--ep={self.ep} must be a positive number or auto")
        return int(self.ep)


def decode_flags(
    nproc_per_node: ProcessesPerNode = LaunchFlags.processes,
    nnodes: Nodes = LaunchFlags.nodes,
    node_rank: NodeRank = LaunchFlags.node_rank,
    rdzv_endpoint: RendezvousEndpoint = LaunchFlags.endpoint,
    ep: Annotated[
        str,
        typer.Option(
            "--ep",
            metavar="N",
            help="Processes over which the routed experts are spread; `auto` is all of them if possible.",
        ),
    ] = AUTO,
    pp: Annotated[
        int,
        typer.Option("--pp", min=1, metavar="N", help="Pipeline stages over which the layers are spread."),
    ] = 1,
) -> DecodeFlags:
    """Options about processes."""
    return DecodeFlags(LaunchFlags(nproc_per_node, nnodes, node_rank, rdzv_endpoint), ep, pp)


def on_processes(flags: DecodeFlags, run: RunDecoding, interactive: bool = False, grace: float = GRACE) -> None:
    """Call `run` here, or start workers that run this command line and call it in each.

    Rank 0 reads standard input if `interactive`; workers have `grace` seconds to end after a signal.

    Raises:
        ValueError: the flags are invalid.
        JobEnded: workers were started, and failed or were stopped.
    """
    ep_size = flags.ep_size()
    if all(name in os.environ for name in WORKER_VARIABLES):
        _run_as_worker(run, ep_size, flags.pp)
        return
    flags.launch.check()
    processes = flags.launch.count()
    if processes * flags.launch.nodes == 1:
        needed = (ep_size or 1) * flags.pp
        if needed > 1:
            asked = f"--ep={ep_size}" if flags.pp == 1 else f"--pp={flags.pp}"
            raise ValueError(f"{asked} needs {needed} processes, or a multiple: --nproc-per-node={needed}")
        from seektune.generate.processes import DecodeProcesses

        run(DecodeProcesses(ep_size=ep_size))
        return
    job = replace(_launch_config(flags, processes), interactive=interactive, grace=grace)
    gpus = launch_flags.count_gpus()
    if 0 < gpus < processes:
        raise ValueError(f"--nproc-per-node={processes}: this machine has {gpus} GPUs, and each takes one process")
    from seektune.launch.local import launch

    launch(job)


def _launch_config(flags: DecodeFlags, processes: int) -> LaunchConfig:
    words = sys.argv[1:]
    environment = dict(os.environ)
    # torch in the launcher would report a lost node with a C++ stack trace
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return LaunchConfig(
        command=(sys.executable, "-P", "-m", "seektune", *words),
        environment=environment,
        processes=processes,
        nodes=flags.launch.nodes,
        node_rank=flags.launch.node_rank,
        endpoint=flags.launch.endpoint or "",
        identity=hashlib.sha256(repr((processes, flags.launch.nodes, flags.ep, flags.pp)).encode()).hexdigest(),
        advice="run the same command again",
    )


def _run_as_worker(run: RunDecoding, ep_size: int | None, pp_size: int) -> None:
    """Run in the process group of a launcher; a signal ends all processes together, between two steps."""
    world = int(os.environ["WORLD_SIZE"])
    with Interruption(worker=True) as interruption:
        from seektune.generate.processes import DecodeProcesses
        from seektune.parallel.process_group import ProcessSlot, process_group

        slot = ProcessSlot(world, int(os.environ["LOCAL_RANK"]), worker=True)
        try:
            with process_group(slot):
                run(DecodeProcesses(slot, ep_size, pp_size, interruption))
        except Interrupted as signal:
            raise Interrupted(f"stopped by {signal}; run the same command again") from None
        except RuntimeError as error:
            if interruption.name is None:
                raise
            # another process stopped first, so communication with it failed here
            raise Interrupted(f"stopped by {interruption.name}; run the same command again") from error
