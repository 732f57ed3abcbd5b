"""The command `launch`: job scripts for Slurm, Kubernetes and SkyPilot."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from seektune.cli.job_script import JobOptions, print_job, sbatch
from seektune.cli.options import ALLOW_OVERRIDES, HELP_FLAGS, Action, checkpoint_flag, path_flag, with_groups
from seektune.cli.train import OVERRIDES_HELP, RecipeArgs, split_args
from seektune.launch.job_spec import Environment, JobSpec
from seektune.launch.kubernetes import Kubernetes, write_kubernetes
from seektune.launch.skypilot import Skypilot, write_skypilot
from seektune.launch.slurm import Slurm, write_slurm

LAUNCH_HELP = (
    """Write a job script for a cluster; the job saves before its time limit and resumes when it is requeued."""
)

SLURM_HELP = f"""Print an sbatch script; --submit submits it.

\b
  seektune launch slurm RECIPE --nodes 16 --partition gpu --venv /shared/venv --run_dir=/shared/runs/mine
  seektune launch slurm RECIPE --nodes 2 --container ghcr.io/you/seektune:0.1.0 --mounts /shared:/shared --submit

A parallel layout that does not fit on these GPUs, by `seektune plan`, is refused; --force writes it anyway.

{OVERRIDES_HELP}
"""

KUBERNETES_HELP = f"""Print a TrainJob (Kubeflow Trainer v2) or a PyTorchJob (Training Operator v1).

\b
  seektune launch kubernetes RECIPE --nodes 2 --image ghcr.io/you/seektune:0.1.0 --pvc checkpoints --env HF_TOKEN

RECIPE is a path inside the image. Variables given by name only are read from the Kubernetes secret of --secret.

{OVERRIDES_HELP}
"""

SKYPILOT_HELP = f"""Print a task for SkyPilot managed jobs.

\b
  seektune launch skypilot RECIPE --nodes 2 --gpu H100:8 --volume checkpoints
  seektune launch skypilot RECIPE --nodes 1 --gpu H200:8 --bucket s3://mine

{OVERRIDES_HELP}
"""

app = typer.Typer(help=LAUNCH_HELP, add_completion=False, rich_markup_mode=None, context_settings=HELP_FLAGS)
SKYPILOT_GPUS = {"H100": "h100-80gb", "H200": "h200-141gb", "B200": "b200-192gb", "GB200": "gb200-192gb",
         "A100-80GB": "a100-80gb", "MI300X": "mi300x-192gb", "MI355X": "mi355x-288gb"}  # fmt: skip
"""The planner's names of SkyPilot's GPUs."""


MakeJobOptions: TypeAlias = Callable[[], JobOptions]


def job_options(
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Number of nodes.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Job name.", show_default="name of the recipe")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Environment variable; give secrets by name only. Repeatable."),
    ] = None,
    signal_seconds: Annotated[
        int, typer.Option(min=1, metavar="SECONDS", help="Time to save between the stop signal and the end of the job.")
    ] = JobSpec.seconds,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=path_flag, help="Write the script to this new file too.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the script even if the plan does not fit.")] = False,
) -> MakeJobOptions:
    """Options that all clusters share."""
    return lambda: JobOptions(nodes, name, Environment.of(env or []), signal_seconds, out, force)


GpusPerNode = Annotated[int, typer.Option(min=1, metavar="N", help="GPUs per node; one process runs on each.")]
GpuModel = Annotated[str, typer.Option("--gpu", metavar="KIND", help="GPU model for the plan.")]


def slurm(
    job: MakeJobOptions,
    args: RecipeArgs = None,
    gpus_per_node: GpusPerNode = 8,
    gpu: GpuModel = "h100-80gb",
    time: Annotated[str, typer.Option(metavar="HH:MM:SS", help="Time limit (sbatch --time).")] = Slurm.time,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="sbatch --partition.")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="sbatch --account.")] = None,
    qos: Annotated[str | None, typer.Option(metavar="NAME", help="sbatch --qos.")] = None,
    constraint: Annotated[str | None, typer.Option(metavar="NAME", help="sbatch --constraint.")] = None,
    container: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Container image to run in (pyxis and enroot).")
    ] = None,
    mounts: Annotated[
        list[str] | None, typer.Option(metavar="SRC:DST", help="Mount of the container; repeatable.")
    ] = None,
    venv: Annotated[
        str | None, typer.Option(metavar="PATH", parser=checkpoint_flag, help="Virtual environment with seektune.")
    ] = None,
    requeue: Annotated[
        bool, typer.Option("--requeue/--no-requeue", help="Requeue the job after preemption or timeout.")
    ] = Slurm.requeue,
    setup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINE", help="Shell line that runs first: `module load cuda`, `conda activate X`. Repeatable."
        ),
    ] = None,
    sbatch_option: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch", metavar="NAME=VALUE", help="Another #SBATCH line: reservation, mail-type. Repeatable."
        ),
    ] = None,
    output: Annotated[str, typer.Option(metavar="DIR", help="Folder for logs, one file per node.")] = Slurm.logs,
    submit: Annotated[bool, typer.Option("--submit", help="Submit the script with sbatch.")] = False,
) -> Action:
    """The command `launch slurm`."""
    options = Slurm(
        *(time, partition, account, qos, constraint, container, tuple(mounts or ()), venv, requeue, output),
        setup=tuple(setup or ()),
        sbatch=tuple(sbatch_option or ()),
    )
    render = partial(write_slurm, slurm=options)
    send = partial(sbatch, logs=output) if submit else None
    return partial(print_job, *split_args(args or []), job(), gpus_per_node, gpu, render, send)


def kubernetes(
    job: MakeJobOptions,
    image: Annotated[str, typer.Option(metavar="IMAGE", help="Container image with seektune and the recipe.")],
    pvc: Annotated[
        str, typer.Option(metavar="CLAIM", help="Persistent volume claim for checkpoints, shared by all nodes.")
    ],
    args: RecipeArgs = None,
    kind: Annotated[
        Literal["trainjob", "pytorchjob"], typer.Option(help="Kubeflow Trainer v2 or Training Operator v1.")
    ] = Kubernetes.kind,
    gpus_per_node: GpusPerNode = 8,
    gpu: GpuModel = "h100-80gb",
    namespace: Annotated[str, typer.Option(metavar="NAME", help="Namespace of the job.")] = Kubernetes.namespace,
    mount: Annotated[str, typer.Option(metavar="PATH", help="Mount path of the claim.")] = Kubernetes.mount,
    shm: Annotated[str, typer.Option(metavar="SIZE", help="Size of /dev/shm.")] = Kubernetes.shm,
    secret: Annotated[
        str, typer.Option(metavar="NAME", help="Secret with the variables given by name only.")
    ] = Kubernetes.secret,
    runtime: Annotated[
        str, typer.Option(metavar="NAME", help="ClusterTrainingRuntime of a TrainJob.")
    ] = Kubernetes.runtime,
) -> Action:
    """The command `launch kubernetes`."""
    options = Kubernetes(image, pvc, kind, namespace, mount, shm, secret, runtime=runtime)
    render = partial(write_kubernetes, options=options)
    return partial(print_job, *split_args(args or []), job(), gpus_per_node, gpu, render, None)


def skypilot(
    job: MakeJobOptions,
    gpu: Annotated[str, typer.Option(metavar="KIND:N", help="GPUs per node, such as H100:8.")],
    args: RecipeArgs = None,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Container image with seektune; without one it is installed.")
    ] = None,
    spot: Annotated[bool, typer.Option("--spot/--no-spot", help="Use spot instances.")] = Skypilot.spot,
    cloud: Annotated[str | None, typer.Option(metavar="CLOUD", help="Cloud and region, such as aws/us-east-1.")] = None,
    bucket: Annotated[str | None, typer.Option(metavar="URI", help="Bucket for checkpoints, one node only.")] = None,
    volume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Volume for checkpoints, any number of nodes.")
    ] = None,
) -> Action:
    """The command `launch skypilot`."""
    kind, colon, count = gpu.partition(":")
    if not kind or not colon or not count.isdecimal() or int(count) < 1:
        raise ValueError(f"--gpu {gpu} must be KIND:N, such as H100:8")
    render = partial(write_skypilot, options=Skypilot(kind, image, spot, cloud, bucket, volume))
    return partial(print_job, *split_args(args or []), job(), int(count), SKYPILOT_GPUS.get(kind, kind), render, None)


for _name, _function, _help in (
    ("slurm", slurm, SLURM_HELP),
    ("kubernetes", kubernetes, KUBERNETES_HELP),
    ("skypilot", skypilot, SKYPILOT_HELP),
):
    _first = _help.splitlines()[0]
    app.command(_name, help=_help, short_help=_first, context_settings=ALLOW_OVERRIDES)(
        with_groups(_function, job=job_options)
    )
