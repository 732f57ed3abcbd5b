"""The verb `launch`: a job for Slurm, Kubernetes or SkyPilot, printed or written to a file, and for Slurm submitted."""

import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from seektune.cli.options import HELP, OPEN_ENDED, Work, spread
from seektune.cli.train import OVERRIDES_HELP, Words, split_words
from seektune.launch.job_spec import Environment, JobSpec, label
from seektune.launch.kubernetes import Kubernetes, write_kubernetes
from seektune.launch.skypilot import Skypilot, write_skypilot
from seektune.launch.slurm import Slurm, write_slurm

LAUNCH_HELP = """Write a job for a cluster: it finds its nodes, saves before it must go, and goes on from there."""

SLURM_HELP = f"""Print an sbatch script; submit it with --submit.

\b
  seektune launch slurm RECIPE --nodes 16 --partition gpu --venv /shared/venv --run_dir=/shared/runs/mine
  seektune launch slurm RECIPE --nodes 2 --container ghcr.io/you/seektune:0.1.0 --mounts /shared:/shared --submit

The plan is asked first: a layout that does not fit these GPUs is not written (--force writes it all the same).

{OVERRIDES_HELP}
"""

KUBERNETES_HELP = f"""Print a TrainJob (Kubeflow Trainer v2) or a PyTorchJob (Training Operator v1).

\b
  seektune launch kubernetes RECIPE --nodes 2 --image ghcr.io/you/seektune:0.1.0 --pvc checkpoints --env HF_TOKEN

RECIPE is a path within the image. Variables that are only named come from the secret `--secret`, never from here.

{OVERRIDES_HELP}
"""

SKYPILOT_HELP = f"""Print a task for SkyPilot's managed jobs.

\b
  seektune launch skypilot RECIPE --nodes 2 --gpu H100:8 --volume checkpoints
  seektune launch skypilot RECIPE --nodes 1 --gpu H200:8 --bucket s3://mine

{OVERRIDES_HELP}
"""

app = typer.Typer(help=LAUNCH_HELP, add_completion=False, rich_markup_mode=None, context_settings=HELP)
KINDS = {"H100": "h100-80gb", "H200": "h200-141gb", "B200": "b200-192gb", "GB200": "gb200-192gb",
         "A100-80GB": "a100-80gb", "MI300X": "mi300x-192gb", "MI355X": "mi355x-288gb"}  # fmt: skip
"""Names of GPUs at SkyPilot, as the planner has them."""


@dataclass(frozen=True)
class Common:
    """What all three are told."""

    nodes: int
    name: str | None
    environment: Environment
    seconds: int
    out: Path | None
    force: bool


MakeCommon: TypeAlias = Callable[[], Common]


def _common(
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Machines.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the job; the recipe's if left out.")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="A variable; secrets by name only. May be repeated."),
    ] = None,
    signal_seconds: Annotated[
        int, typer.Option(min=1, metavar="S", help="Between the request to stop and the end: time to save.")
    ] = JobSpec.seconds,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write here too; it must be new.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write what the plan says does not fit.")] = False,
) -> MakeCommon:
    return lambda: Common(nodes, name, Environment.of(env or []), signal_seconds, out, force)


GpusPerNode = Annotated[int, typer.Option(min=1, metavar="N", help="GPUs of a node, a process for each.")]
Kind = Annotated[str, typer.Option("--gpu", metavar="KIND", help="For the plan, such as h100-80gb.")]


def slurm(
    common: MakeCommon,
    words: Words = None,
    gpus_per_node: GpusPerNode = 8,
    gpu: Kind = "h100-80gb",
    time: Annotated[str, typer.Option(metavar="HH:MM:SS", help="Longest time of one run.")] = Slurm.time,
    partition: Annotated[str | None, typer.Option(help="As sbatch takes it.")] = None,
    account: Annotated[str | None, typer.Option(help="As sbatch takes it.")] = None,
    qos: Annotated[str | None, typer.Option(help="As sbatch takes it.")] = None,
    constraint: Annotated[str | None, typer.Option(help="As sbatch takes it.")] = None,
    container: Annotated[str | None, typer.Option(metavar="IMAGE", help="Run in it (pyxis and enroot).")] = None,
    mounts: Annotated[list[str] | None, typer.Option(metavar="HERE:THERE", help="Of the container.")] = None,
    venv: Annotated[str | None, typer.Option(metavar="PATH", help="Environment that has seektune.")] = None,
    requeue: Annotated[
        bool, typer.Option("--requeue/--no-requeue", help="Queue again what had to go.")
    ] = Slurm.requeue,
    output: Annotated[str, typer.Option(metavar="DIR", help="Logs, one file for each node.")] = Slurm.logs,
    submit: Annotated[bool, typer.Option("--submit", help="Hand it to sbatch.")] = False,
) -> Work:
    """The verb `launch slurm`."""
    asked = Slurm(time, partition, account, qos, constraint, container, tuple(mounts or ()), venv, requeue, output)
    write = partial(write_slurm, slurm=asked)
    after = partial(_submit, logs=output) if submit else None
    return partial(_launch, *split_words(words or []), common(), gpus_per_node, gpu, write, after)


def kubernetes(
    common: MakeCommon,
    image: Annotated[str, typer.Option(metavar="IMAGE", help="Holds seektune and the recipe.")],
    pvc: Annotated[str, typer.Option(metavar="CLAIM", help="For checkpoints; all nodes write to it.")],
    words: Words = None,
    kind: Annotated[
        Literal["trainjob", "pytorchjob"], typer.Option(help="Trainer v2, or Operator v1.")
    ] = Kubernetes.kind,
    gpus_per_node: GpusPerNode = 8,
    gpu: Kind = "h100-80gb",
    namespace: Annotated[str, typer.Option(help="Of the job.")] = Kubernetes.namespace,
    mount: Annotated[str, typer.Option(metavar="PATH", help="Where the claim is seen.")] = Kubernetes.mount,
    shm: Annotated[str, typer.Option(metavar="SIZE", help="Of /dev/shm.")] = Kubernetes.shm,
    secret: Annotated[str, typer.Option(help="Holds variables that are only named.")] = Kubernetes.secret,
    runtime: Annotated[str, typer.Option(help="TrainJob: the ClusterTrainingRuntime.")] = Kubernetes.runtime,
) -> Work:
    """The verb `launch kubernetes`."""
    asked = Kubernetes(image, pvc, kind, namespace, mount, shm, secret, runtime=runtime)
    write = partial(write_kubernetes, asked=asked)
    return partial(_launch, *split_words(words or []), common(), gpus_per_node, gpu, write, None)


def skypilot(
    common: MakeCommon,
    gpu: Annotated[str, typer.Option(metavar="KIND:N", help="GPUs of a node, such as H100:8.")],
    words: Words = None,
    image: Annotated[str | None, typer.Option(metavar="IMAGE", help="Holds seektune; else it is installed.")] = None,
    spot: Annotated[bool, typer.Option("--spot/--no-spot", help="Machines that may be taken back.")] = Skypilot.spot,
    cloud: Annotated[str | None, typer.Option(metavar="PLACE", help="Such as aws/us-east-1.")] = None,
    bucket: Annotated[str | None, typer.Option(metavar="URI", help="For checkpoints of one node.")] = None,
    volume: Annotated[str | None, typer.Option(metavar="NAME", help="For checkpoints of several.")] = None,
) -> Work:
    """The verb `launch skypilot`."""
    kind, colon, count = gpu.partition(":")
    if not kind or not colon or not count.isdecimal() or int(count) < 1:
        raise ValueError(f"--gpu {gpu} must be KIND:N, such as H100:8")
    write = partial(write_skypilot, asked=Skypilot(kind, image, spot, cloud, bucket, volume))
    return partial(_launch, *split_words(words or []), common(), int(count), KINDS.get(kind, kind), write, None)


for _name, _verb, _help in (
    ("slurm", slurm, SLURM_HELP),
    ("kubernetes", kubernetes, KUBERNETES_HELP),
    ("skypilot", skypilot, SKYPILOT_HELP),
):
    _first = _help.splitlines()[0]
    app.command(_name, help=_help, short_help=_first, context_settings=OPEN_ENDED)(spread(_verb, common=_common))


def _launch(
    path: str,
    overrides: list[str],
    common: Common,
    gpus: int,
    kind: str,
    write: Callable[[JobSpec], str],
    after: Callable[[str], None] | None,
) -> None:
    if common.out is not None and common.out.exists():
        raise ValueError(f"--out {common.out} exists; name a new file")
    from seektune.recipe.load import read_recipe

    loaded = read_recipe(path, overrides)
    if not common.force:
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
        from seektune.workflows.preflight import cluster_of, settle

        try:
            overrides = [*overrides, *settle(loaded.recipe, cluster_of(kind, common.nodes, gpus))]
        except ValueError as error:
            raise ValueError(f"{error}; --force writes the job all the same") from None
    task = JobSpec(
        recipe=path,
        overrides=tuple(overrides),
        nodes=common.nodes,
        gpus=gpus,
        name=common.name or label(loaded.name),
        environment=common.environment,
        has_run_dir=loaded.recipe.run_dir is not None,
        seconds=common.seconds,
    )
    text = write(task)
    print(text, end="")
    if common.out is not None:
        common.out.write_text(text, encoding="utf-8")
    if after is not None:
        after(text)


def _submit(text: str, logs: str) -> None:
    """Hand a script to sbatch.

    Raises:
        ValueError: there is no sbatch here.
        OSError: it refuses.
    """
    Path(logs).mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            done = subprocess.run(["sbatch", file.name], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ValueError("--submit: there is no sbatch on this machine; run it where Slurm is installed") from None
    if done.returncode:
        raise OSError(f"sbatch refused: {(done.stderr or done.stdout).strip()}")
    print(f"# {done.stdout.strip()}")
