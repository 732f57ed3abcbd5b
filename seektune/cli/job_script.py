"""Job scripts for clusters: check that the layout fits, then print, save or submit the script."""

import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seektune.io.atomic import refuse_existing, write_atomically
from seektune.launch.job_spec import Environment, JobSpec, label

if TYPE_CHECKING:
    from seektune.recipe.recipe import Recipe


@dataclass(frozen=True)
class JobOptions:
    """Options of a job on any kind of cluster."""

    nodes: int
    name: str | None
    """None: the recipe's."""
    environment: Environment
    signal_seconds: int
    """Between the stop signal and the end of the job."""
    out: Path | None
    """File to write beside printing."""
    force: bool
    """Whether a layout that does not fit is written too."""


def print_job(
    path: str,
    overrides: list[str],
    options: JobOptions,
    gpus: int,
    gpu: str,
    render: Callable[[JobSpec], str],
    submit: Callable[[str], None] | None,
) -> None:
    """Print the script of a training job.

    Args:
        path: of the recipe.
        overrides: of the recipe's keys.
        options: of the job.
        gpus: per node.
        gpu: the planner's name of the GPU model.
        render: makes the script.
        submit: called with the script; None only prints it.

    Raises:
        ValueError: the recipe is invalid, its layout does not fit, or the output file exists.
        OSError: the file cannot be written, or the submission failed.
    """
    if options.out is not None:
        refuse_existing(options.out)
    from seektune.recipe.load import read_recipe

    loaded = read_recipe(path, overrides)
    if not options.force:
        overrides = [*overrides, *_fitting_layout(loaded.recipe, options.nodes, gpus, gpu)]
    job = JobSpec(
        recipe=path,
        overrides=tuple(overrides),
        nodes=options.nodes,
        gpus=gpus,
        name=options.name or label(loaded.name),
        environment=options.environment,
        run_dir=loaded.recipe.run_dir,
        seconds=options.signal_seconds,
    )
    script = render(job)
    print(script, end="")
    if options.out is not None:
        write_atomically(options.out, script)
    if submit is not None:
        submit(script)


def _fitting_layout(recipe: "Recipe", nodes: int, gpus: int, gpu: str) -> list[str]:
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    from seektune.workflows.preflight import cluster_of, settle

    try:
        return settle(recipe, cluster_of(gpu, nodes, gpus))
    except ValueError as error:
        raise ValueError(f"{error}; --force writes the job anyway") from None


def sbatch(script: str, logs: str) -> None:
    """Submit a script with sbatch.

    Raises:
        ValueError: sbatch is not installed.
        OSError: sbatch refused the script.
    """
    Path(logs).mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as file:
        file.write(script)
        file.flush()
        try:
            done = subprocess.run(["sbatch", file.name], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ValueError("--submit: sbatch not found; run this where Slurm is installed") from None
    if done.returncode:
        raise OSError(f"sbatch failed: {(done.stderr or done.stdout).strip()}")
    print(f"# {done.stdout.strip()}")
