"""Where training processes start: this one trains alone, starts workers that train, or is one of those workers."""

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from seektune.cli.errors import told_of_memory
from seektune.io.cache_dir import cache_dir
from seektune.launch.job import LaunchConfig

if TYPE_CHECKING:
    from seektune.recipe.load import LoadedRecipe
    from seektune.recipe.recipe import Recipe

A_WORKERS_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What torchrun, and the launcher here, leave in the environment of a worker."""
BY_GPU = ("gpu", "auto")
"""Instead of a number of processes; `auto` is one process where there is no GPU."""


PRODUCTS_KEPT = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
"""Compiled bf16 products that torch and oneDNN keep on a CPU, unless the user says otherwise. By default they keep
1,024 each, one for each shape; how many tokens an expert gets differs in every step, so these would take hundreds of MB
and hardly be used again. Both are read when the first product runs."""


@dataclass(frozen=True)
class Flags:
    """What the user said about processes."""

    processes: str = "1"
    """A number, or `gpu` or `auto`."""
    nodes: int = 1
    node_rank: int = 0
    endpoint: str | None = None
    max_restarts: int = LaunchConfig.max_restarts
    grace: float = LaunchConfig.grace

    def count(self) -> int:
        """Processes on this node.

        Raises:
            ValueError: one for each GPU, but there is none.
        """
        if self.processes not in BY_GPU:
            return int(self.processes)
        if (gpus := _gpus()) == 0 and self.processes == "gpu":
            raise ValueError("--nproc-per-node=gpu: this machine has no GPU; give a number of processes")
        return max(gpus, 1)

    def check(self) -> None:
        """Raises ValueError where the flags contradict each other."""
        if self.processes not in BY_GPU and not (self.processes.isdecimal() and int(self.processes) > 0):
            raise ValueError(f"--nproc-per-node={self.processes} must be a positive number, gpu or auto")
        if self.node_rank >= self.nodes:
            raise ValueError(
                f"--node-rank={self.node_rank} must be less than --nnodes={self.nodes}; nodes count from 0"
            )
        if self.nodes == 1:
            return
        host, _, port = (self.endpoint or "").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(
                f"--nnodes={self.nodes} needs --rdzv-endpoint=HOST:PORT, node 0's name and a free port there"
                + (f", not {self.endpoint}" if self.endpoint else "")
            )


@dataclass(frozen=True)
class DryFlags:
    """What the user said about a dry run."""

    asked: bool = False
    world: int | None = None
    """Processes of the imagined job; None for those that would be started, or the fewest that the recipe takes."""
    ranks: str = ""
    """Numbers with commas between; empty for the first process of each stage."""
    as_json: bool = False

    def check(self) -> None:
        """Raises ValueError where the flags contradict each other."""
        if not self.asked and self != DryFlags():
            raise ValueError("--world-size, --ranks and --json belong to --dry-run, which is not there")
        if not all(number.strip().isdecimal() for number in self.ranks.split(",") if self.ranks):
            raise ValueError(f"--ranks={self.ranks} must be numbers with commas between, such as --ranks=0,5,127")

    def numbers(self) -> list[int]:
        """The ranks."""
        return [int(number) for number in self.ranks.split(",")] if self.ranks else []


def start(path: str, overrides: list[str], flags: Flags, dry: DryFlags = DryFlags()) -> None:
    """Read the recipe first, so that no other complaint hides what is wrong with it; then train as it says.

    Raises:
        ValueError: a mistake in the recipe or the flags.
        JobEnded: workers were started, and did not end well.
    """
    from seektune.recipe.load import read_recipe

    loaded = read_recipe(path, overrides)
    dry.check()
    if dry.asked:
        flags.check()
        run_dry(loaded, flags, dry)
        return
    if all(name in os.environ for name in A_WORKERS_PLACE):
        _work(loaded, flags, int(os.environ["WORLD_SIZE"]))
        return
    flags.check()
    environment = dict(os.environ)
    if flags.processes != "1" or flags.nodes > 1:
        # the launcher's own torch would report a lost node with a stack of C++ frames
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    processes = flags.count()
    if loaded.recipe.parallel.layout == "auto":
        from seektune.workflows.preflight import choose_layout, cluster_here

        overrides = [*overrides, *choose_layout(loaded.recipe, cluster_here(processes, flags.nodes))]
        loaded = read_recipe(path, overrides)
    check_world(loaded.recipe, processes * flags.nodes)
    if processes * flags.nodes == 1 and not flags.max_restarts:
        train_here(loaded)
        return
    job = plan_job(loaded, path, overrides, flags, processes, environment)
    gpus = _gpus()
    if 0 < gpus < processes:  # torch is asked last, as that takes seconds
        raise ValueError(f"--nproc-per-node={processes}: this machine has {gpus} GPUs, and each takes one process")
    from seektune.workflows.preflight import check_memory

    check_memory(loaded.recipe, loaded.recipe.model.architecture(), processes, flags.nodes)
    from seektune.launch.local import launch

    launch(job)


def run_dry(loaded: "LoadedRecipe", flags: Flags, dry: DryFlags) -> None:
    """Build a job of any size without starting it, and print what its processes hold and send."""
    started = flags.count() * flags.nodes
    if loaded.recipe.parallel.layout == "auto":
        raise ValueError("parallel: auto takes a layout at launch, by the GPUs; seektune plan --search tells the sizes")
    world = dry.world or (started if started > 1 else loaded.recipe.parallel.least_world())
    check_world(loaded.recipe, world)
    # torch wonders in C++ about a process group that has no real backend
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    from seektune.workflows.dry_run import dry_run

    for note in loaded.notes:
        print(note, file=sys.stderr)
    dry_run(loaded.recipe, world, dry.numbers(), dry.as_json)


def train_here(loaded: "LoadedRecipe", world: int = 1, local_rank: int = 0) -> None:
    """Train in this process, which may be one of several."""
    from seektune.signals import Interrupted, Interruption

    for name, value in PRODUCTS_KEPT.items():
        os.environ.setdefault(name, value)
    with Interruption(worker=world > 1) as interruption:
        try:
            # loading torch takes seconds, in which a signal must mean what it means later
            with interruption.deferred():
                from seektune.parallel.process_group import ProcessSlot
                from seektune.workflows.train import train
        except Interrupted as signal:
            raise Interrupted(f"stopped by {signal} while starting; the same command starts again") from None
    with told_of_memory("lower batch.micro_size or batch.length"):
        slot = ProcessSlot(world, local_rank)
        train(loaded.recipe, loaded.name, loaded.notes, cache_dir(os.environ), slot)


def _work(loaded: "LoadedRecipe", flags: Flags, world: int) -> None:
    if flags != Flags():
        raise ValueError(
            f"this process is one of {world} that a launcher started ({', '.join(A_WORKERS_PLACE)} are set) and starts "
            "no others; leave --nproc-per-node and its like to the launcher"
        )
    if loaded.recipe.parallel.layout == "auto":
        raise ValueError("parallel: auto is settled by seektune's own launcher; seektune plan --search tells the sizes")
    check_world(loaded.recipe, world)
    if world > 1 and loaded.recipe.run_dir is None:
        raise ValueError(f"{world} processes need one folder; name it: --run_dir=runs/NAME")
    train_here(loaded, world, int(os.environ["LOCAL_RANK"]))


def plan_job(
    loaded: "LoadedRecipe",
    path: str,
    overrides: list[str],
    flags: Flags,
    processes: int,
    environment: Mapping[str, str],
) -> LaunchConfig:
    """What the workers run; a run without a folder gets its one here, as all of them and every restart need the same.

    Raises:
        ValueError: several nodes have no folder in common, or restarts would not go on where the run was.
    """
    from seektune.recipe.load import dump_recipe
    from seektune.run.run_dir import choose_folder

    recipe = loaded.recipe
    if flags.nodes > 1 and recipe.run_dir is None:
        raise ValueError(f"{flags.nodes} nodes need one folder that all of them see; name it: --run_dir=SHARED/NAME")
    if flags.max_restarts and recipe.resume != "auto":
        raise ValueError(
            f"--max-restarts goes on from the run's own checkpoints, so resume must be auto, not {recipe.resume}"
        )
    folder = choose_folder(recipe.run_dir, loaded.name, datetime.now())
    shared = (dump_recipe(recipe), processes, flags.nodes, flags.max_restarts)
    return LaunchConfig(
        command=(sys.executable, "-P", "-m", "seektune", "train", path, *overrides, f"--run_dir={folder}"),
        environment=environment,
        processes=processes,
        nodes=flags.nodes,
        node_rank=flags.node_rank,
        endpoint=flags.endpoint or "",
        max_restarts=flags.max_restarts,
        grace=flags.grace,
        identity=hashlib.sha256(repr(shared).encode()).hexdigest(),
        advice=f"the same command with --run_dir={folder} resumes from the last checkpoint",
    )


def _gpus() -> int:
    from torch.cuda import device_count

    return device_count()


def check_world(recipe: "Recipe", world: int) -> None:
    """Check that the sizes of the mesh dequantize, and that model and batch can be cut so where that is known.

    Raises:
        ValueError: they do not, and what layouts fit; or adapters ask for one process.
    """
    from seektune.parallel.dims import make_dims, rows_at_a_time

    recipe.check_world(world)
    architecture = recipe.model.architecture()
    try:
        plan = make_dims(recipe.parallel, world, architecture)
    except ValueError as error:
        small = world == 1 and recipe.model.preset not in (None, "tiny")
        more = f" (and --model.preset=tiny, as {recipe.model.preset} does not fit one device)" if small else ""
        raise ValueError(f"{error}{more}") from None
    if architecture is not None:
        rows_at_a_time(plan, recipe.parallel, architecture, recipe.batch.global_size, recipe.batch.micro_size)
