"""A job for Slurm: one commented sbatch script that saves before its time is over, is queued again and goes on."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from seektune.exit_codes import RESUME_ME
from seektune.launch.job_spec import JobSpec, header, one_line

OWN = ("hosts", "host", "port", "command", "step", "place", "step_id", "asked", "before", "code")
"""Variables of the script itself."""
LONGEST = 65535
"""Seconds of --signal that Slurm takes."""


@dataclass(frozen=True)
class Slurm:
    """What Slurm is asked for, beside nodes and GPUs."""

    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    container: str | None = None
    """An image for pyxis, instead of programs of the nodes."""
    mounts: tuple[str, ...] = ()
    venv: str | None = None
    requeue: bool = True
    logs: str = "logs"
    """Folder that all nodes see."""

    def check(self) -> None:
        """Raises ValueError where words contradict each other."""
        if self.container and self.venv:
            raise ValueError("--container brings its own Python; leave --venv away")
        if self.mounts and not self.container:
            raise ValueError("--mounts belongs to --container, which is not there")
        if any("," in mount or ":" not in mount for mount in self.mounts):
            raise ValueError("--mounts takes one HERE:THERE, without commas; repeat it for more")


def write_slurm(task: JobSpec, slurm: Slurm) -> str:
    """The script.

    Raises:
        ValueError: a word that cannot be written safely.
    """
    slurm.check()
    if taken := [name for name in (*task.environment.names, *dict(task.environment.values)) if name in OWN]:
        raise ValueError(f"--env {taken[0]}: the script has a variable of that name")
    if "/" in task.name:
        raise ValueError(f"--name {task.name!r} becomes part of file names, and must have no /")
    if task.seconds > LONGEST:
        raise ValueError(f"--signal-seconds {task.seconds}: Slurm takes {LONGEST} at most")
    return "\n".join((*_head(task, slurm), "", *_body(task, slurm), ""))


def _head(task: JobSpec, slurm: Slurm) -> Iterator[str]:
    name = header("the job's name", task.name)
    logs = header("--output", slurm.logs)
    yield "#!/bin/bash"
    yield f"# {task.nodes} nodes of {task.gpus} GPUs, written by seektune launch slurm."
    yield f"#SBATCH --job-name={name}"
    yield f"#SBATCH --nodes={task.nodes}"
    yield "#SBATCH --ntasks-per-node=1    # seektune starts a process for each GPU itself"
    yield f"#SBATCH --gpus-per-node={task.gpus}"
    yield "#SBATCH --exclusive            # all cores: they load data and feed the GPUs"
    yield "#SBATCH --mem=0                # and all memory"
    yield f"#SBATCH --time={header('--time', slurm.time)}"
    wishes = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "constraint": slurm.constraint}
    for key, value in wishes.items():
        if value is not None:
            yield f"#SBATCH --{key}={header(f'--{key}', value)}"
    yield f"#SBATCH --output={logs}/{name}-%j.log"
    yield "#SBATCH --open-mode=append     # a job that is queued again goes on with its log"
    yield f"#SBATCH --signal=B:USR1@{task.seconds}    # to this script, so many seconds before the time is over"
    yield f"#SBATCH --{'requeue' if slurm.requeue else 'no-requeue'}"


def _body(task: JobSpec, slurm: Slurm) -> Iterator[str]:
    yield "# shellcheck disable=SC2016,SC2329  # single quotes keep words as they are; `trap` calls the function"
    yield ""
    yield "set -uo pipefail"
    yield ""
    yield "# Node 0 is where launchers and workers meet. The port comes from the job's number, as nodes may be shared."
    yield 'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || exit 1'
    yield "host=${hosts%%$'\\n'*}"
    yield "port=$((20000 + SLURM_JOB_ID % 10000))"
    yield ""
    yield from _variables(task)
    yield "# What each node runs. The folder has the job's number, which a requeue keeps, and so its checkpoints."
    yield "command=("
    door = [f"{slurm.venv.rstrip('/')}/bin/python", "-P", "-m", "seektune"] if slurm.venv else ["seektune"]
    folder = f"runs/{task.name}-$SLURM_JOB_ID"
    yield from (f"  {_quoted(word, folder)}" for word in task.command(door, folder))
    yield f'  --nnodes={task.nodes} "--rdzv-endpoint=$host:$port"'
    yield ")"
    yield ""
    yield from _step(task, slurm)
    yield from _end(slurm)


def _variables(task: JobSpec) -> Iterator[str]:
    yield "# NCCL's warnings only; INFO shows which network it found, the first thing to look at when it is slow."
    yield 'export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"'
    yield "# Bootstrapping over docker's or the loopback interface is NCCL's usual mistake; name yours (ib0) if needed."
    yield 'export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^docker,lo,veth}"'
    yield "# Buffers of several hundred MB come and go; growing segments leave fewer holes in a GPU's memory."
    yield 'export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"'
    for name, value in task.environment.values:
        yield f"export {name}={shlex.quote(value)}"
    for name in task.environment.names:
        yield f'export {name}="${{{name}:?is not set where sbatch was called}}"'
    yield ""


def _step(task: JobSpec, slurm: Slurm) -> Iterator[str]:
    name = task.name
    yield "# One launcher per node. Nothing here kills the others when one ends: they hear of it, and save first."
    yield "step=("
    yield "  srun --ntasks-per-node=1 --kill-on-bad-exit=0"
    yield "  --cpu-bind=none    # else each launcher and all its workers share one core"
    yield f'  "--output={slurm.logs}/{name}-%j-node%n.log" --open-mode=append'
    if slurm.container:
        yield f"  --container-image={shlex.quote(one_line('--container', slurm.container))}"
        if mounts := ",".join(slurm.mounts):
            yield f"  --container-mounts={shlex.quote(one_line('--mounts', mounts))}"
        yield '  "--container-workdir=$PWD"'
        if names := ",".join(task.environment.names):
            yield f"  --container-env={names}    # of this shell, not the image's"
    yield ")"
    yield "# $SLURM_NODEID is another on each node, so it is read there."
    yield """place='exec "$@" --node-rank="$SLURM_NODEID"'"""
    yield '"${step[@]}" bash -c "$place" seektune "${command[@]}" &'
    yield "step_id=$!"
    yield ""


def _end(slurm: Slurm) -> Iterator[str]:
    yield "# The time is nearly over, or the job must make room: srun passes the signal to launchers, these to workers,"
    yield f"# which finish their step, save and end with {RESUME_ME}."
    yield "asked=0"
    yield 'forward() { [ "$asked" -gt 0 ] || kill -"$1" "$step_id" 2>/dev/null; asked=$((asked + 1)); }'
    yield "trap 'forward USR1' USR1"
    yield "trap 'forward TERM' TERM"
    yield "# a signal ends `wait` with more than 128, but not the step"
    yield "before=-1 code=255"
    yield 'while [ "$code" -gt 128 ] && [ "$asked" -ne "$before" ]; do before=$asked; wait "$step_id"; code=$?; done'
    if slurm.requeue:
        yield f'if [ "$code" -eq {RESUME_ME} ] && [ "$asked" -gt 0 ]; then'
        yield '  echo "saved; queued again as job $SLURM_JOB_ID"'
        yield '  scontrol requeue "$SLURM_JOB_ID" && exit 0'
        yield '  echo "scontrol requeue failed; sbatch the same script with the same --run_dir goes on" >&2'
        yield "fi"
    else:
        yield f'if [ "$code" -eq {RESUME_ME} ]; then echo "saved (asked: $asked); the same --run_dir goes on"; fi'
    yield 'exit "$code"'
    yield "# Submit: seektune launch slurm ... --submit, or"
    yield f"# mkdir -p {slurm.logs} && sbatch FILE"


def _quoted(word: str, folder: str) -> str:
    """A word for bash; only the folder's job number is left to it."""
    if word == f"--run_dir={folder}":
        return f'"{word}"'
    return shlex.quote(word)
