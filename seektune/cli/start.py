"""Start training: in this process, in workers that a launcher starts, or as one of those workers."""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from seektune.cli import launch_flags
from seektune.cli.errors import explain_out_of_memory
from seektune.cli.launch_flags import DryRunFlags, LaunchFlags
from seektune.io.cache_dir import cache_dir
from seektune.io.text import on_one_line
from seektune.launch.job import LaunchConfig

if TYPE_CHECKING:
    from seektune.recipe.load import LoadedRecipe
    from seektune.recipe.recipe import Recipe
    from seektune.signals import Interruption

WORKER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Environment variables that torchrun, and the launcher here, set for a worker."""
CPU_CACHE_LIMITS = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
"""Limits of the caches of compiled bf16 matrix products in torch and oneDNN on a CPU, unless the user sets them. The
default is 1,024 entries each, one per shape; the number of tokens per expert differs in every step, so they would take
hundreds of MB and rarely be reused. Both are read when the first product runs."""


def start(path: str, overrides: list[str], flags: LaunchFlags, dry: DryRunFlags) -> None:
    """Read the recipe, then train; errors in the recipe come before any other.

    Raises:
        ValueError: the recipe or the flags are invalid.
        JobEnded: workers were started, and failed or were stopped.
    """
    from seektune.recipe.load import read_recipe

    loaded = read_recipe(path, overrides)
    dry.check()
    if dry.enabled:
        flags.check()
        start_dry_run(loaded, flags, dry)
        return
    if all(name in os.environ for name in WORKER_VARIABLES):
        _train_as_worker(loaded, flags, int(os.environ["WORLD_SIZE"]))
        return
    flags.check()
    from seektune.signals import Interruption

    with Interruption() as interruption:
        with _starting(interruption):
            job = _prepare(loaded, path, overrides, flags)
        if isinstance(job, LaunchConfig):
            with _starting(interruption):
                from seektune.launch.local import launch
            launch(job)
            return
    train_in_process(job)


def _prepare(
    loaded: "LoadedRecipe", path: str, overrides: list[str], flags: LaunchFlags
) -> "LaunchConfig | LoadedRecipe":
    """The launcher's job, or the recipe where this process alone trains; all checks that need no workers."""
    environment = dict(os.environ)
    if flags.processes != "1" or flags.nodes > 1:
        # torch in the launcher would report a lost node with a C++ stack trace
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    processes = flags.count()
    if loaded.recipe.parallel.layout == "auto":
        from seektune.recipe.load import read_recipe
        from seektune.workflows.preflight import choose_layout, cluster_here

        overrides = [*overrides, *choose_layout(loaded.recipe, cluster_here(processes, flags.nodes))]
        loaded = read_recipe(path, overrides)
    check_world(loaded.recipe, processes * flags.nodes)
    if processes * flags.nodes == 1 and not flags.max_restarts:
        return loaded
    job = make_launch_config(loaded, path, overrides, flags, processes, environment)
    gpus = launch_flags.count_gpus()
    if 0 < gpus < processes:  # checked last, as importing torch takes seconds
        raise ValueError(f"--nproc-per-node={processes}: this machine has {gpus} GPUs, and each takes one process")
    from seektune.workflows.preflight import check_memory

    check_memory(loaded.recipe, loaded.recipe.model.architecture(), processes, flags.nodes)
    return job


@contextmanager
def _starting(interruption: "Interruption") -> Iterator[None]:
    """A block that imports torch, which takes seconds; a signal during it has the same effect as later.

    Raises:
        Interrupted: after the block, where there was one.
    """
    from seektune.signals import Interrupted

    try:
        with interruption.deferred():
            yield
    except Interrupted as signal:
        raise Interrupted(f"stopped by {signal} while starting; run the same command again") from None


def start_dry_run(loaded: "LoadedRecipe", flags: LaunchFlags, dry: DryRunFlags) -> None:
    """Print the memory and communication of a job's ranks without starting it."""
    started = flags.count() * flags.nodes
    if loaded.recipe.parallel.layout == "auto":
        raise ValueError(
            "parallel: auto chooses its layout at launch, from the GPUs; seektune plan --search lists layouts"
        )
    world = dry.world or (started if started > 1 else loaded.recipe.parallel.least_world())
    check_world(loaded.recipe, world)
    # torch warns in C++ about a process group without a real backend
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    from seektune.workflows.dry_run import dry_run

    for note in loaded.notes:
        print(on_one_line(note), file=sys.stderr)
    dry_run(loaded.recipe, world, dry.rank_list(), dry.as_json)


def train_in_process(loaded: "LoadedRecipe", world: int = 1, local_rank: int = 0, worker: bool = False) -> None:
    """Train in this process, which may be one of several; a launcher started a `worker`."""
    from seektune.signals import Interruption

    for name, value in CPU_CACHE_LIMITS.items():
        os.environ.setdefault(name, value)
    smaller = "batch.length" if loaded.recipe.batch.micro_size == 1 else "batch.micro_size or batch.length"
    with Interruption(worker) as interruption, _starting(interruption):
        from seektune.parallel.process_group import ProcessSlot
        from seektune.workflows.train import train
    with explain_out_of_memory(f"lower {smaller}"):
        slot = ProcessSlot(world, local_rank, worker)
        train(loaded.recipe, loaded.name, loaded.notes, cache_dir(os.environ), slot)


def _train_as_worker(loaded: "LoadedRecipe", flags: LaunchFlags, world: int) -> None:
    if flags != LaunchFlags():
        raise ValueError(
            f"this process is one of {world} workers of a launcher ({', '.join(WORKER_VARIABLES)} are set); "
            "give --nproc-per-node and the other process flags to the launcher"
        )
    if loaded.recipe.parallel.layout == "auto":
        raise ValueError("parallel: auto needs seektune's own launcher; seektune plan --search lists layouts")
    check_world(loaded.recipe, world)
    if world > 1 and loaded.recipe.run_dir is None:
        raise ValueError(f"{world} processes need a common run folder: set --run_dir=runs/NAME")
    train_in_process(loaded, world, int(os.environ["LOCAL_RANK"]), worker=True)


def make_launch_config(
    loaded: "LoadedRecipe",
    path: str,
    overrides: list[str],
    flags: LaunchFlags,
    processes: int,
    environment: Mapping[str, str],
) -> LaunchConfig:
    """The launcher's job. A run without a folder gets one here, as all workers and every restart need the same.

    Raises:
        ValueError: several nodes without a run folder, or restarts that could not resume.
    """
    from seektune.recipe.load import dump_recipe
    from seektune.run.run_dir import choose_folder

    recipe = loaded.recipe
    if flags.nodes > 1 and recipe.run_dir is None:
        raise ValueError(f"{flags.nodes} nodes need a run folder on a shared disk: set --run_dir=SHARED/NAME")
    if flags.max_restarts and recipe.resume != "auto":
        raise ValueError(
            f"--max-restarts resumes from the run's own checkpoints, so resume must be auto, not {recipe.resume}"
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
        grace=flags.shutdown_timeout,
        identity=hashlib.sha256(repr(shared).encode()).hexdigest(),
        advice=f"the same command with --run_dir={folder} resumes from the last checkpoint",
    )


def check_world(recipe: "Recipe", world: int) -> None:
    """Check that the mesh sizes multiply to the number of processes, and that model and batch can be split so.

    Raises:
        ValueError: they do not; the message offers layouts that do. Or the recipe is limited to one process.
    """
    from seektune.parallel.dims import make_dims
    from seektune.parallel.micro_batches import micro_batch_rows

    recipe.check_world(world)
    architecture = recipe.model.architecture()
    try:
        plan = make_dims(recipe.parallel, world, architecture)
    except ValueError as error:
        preset = recipe.model.preset
        large = world == 1 and preset is not None and not preset.startswith("tiny")
        more = f" (and --model.preset=tiny, as {preset} does not fit one device)" if large else ""
        raise ValueError(f"{error}{more}") from None
    if architecture is not None:
        for _, stage in recipe.batch.each_stage():
            micro_batch_rows(plan, recipe.parallel, architecture, stage.global_size, stage.micro_size)
