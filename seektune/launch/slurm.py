"""Writes a job for Slurm: a commented sbatch script that saves before its time limit, is requeued and resumes."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from seektune.exit_codes import RESUME_ME
from seektune.launch.job_spec import JobSpec, header, one_line, setup_line
from seektune.launch.slurm_options import array_of, check_array, check_time, checked_options
from seektune.paths import expand_path

SCRIPT_VARIABLES = ("hosts", "host", "port", "command", "step", "start", "step_id", "signals", "seen", "code")
"""Variables of the script itself."""
MAX_SIGNAL_SECONDS = 65535
"""Slurm's limit for --signal."""


@dataclass(frozen=True)
class Slurm:
    """Options of the job, in addition to nodes and GPUs."""

    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    container: str | None = None
    """An image for pyxis; None = the nodes' own software."""
    mounts: tuple[str, ...] = ()
    venv: str | None = None
    requeue: bool = True
    logs: str = "logs"
    """Folder that all nodes see."""
    setup: tuple[str, ...] = ()
    """Shell lines that run first, such as `module load cuda`."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as `--reservation=NAME`."""

    def check(self, seconds: int) -> None:
        """Raises ValueError if options contradict each other, or the job would be stopped `seconds` before it began."""
        check_time(self.time, seconds)
        if self.container and self.venv:
            raise ValueError("--container brings its own Python; leave --venv out")
        if self.mounts and not self.container:
            raise ValueError("--mounts needs --container")
        if any("," in mount or ":" not in mount for mount in self.mounts):
            raise ValueError("--mounts takes one HERE:THERE, without commas; repeat it for more")


def write_slurm(spec: JobSpec, slurm: Slurm) -> str:
    """The sbatch script.

    Raises:
        ValueError: an option cannot be written safely.
    """
    slurm.check(spec.seconds)
    check_array(slurm.sbatch, spec.run_dir is not None)
    if taken := [
        name for name in (*spec.environment.names, *dict(spec.environment.values)) if name in SCRIPT_VARIABLES
    ]:
        raise ValueError(f"--env {taken[0]}: the script itself uses a variable of that name")
    if "/" in spec.name:
        raise ValueError(f"--name {spec.name!r} becomes part of file names and must not contain /")
    if spec.seconds > MAX_SIGNAL_SECONDS:
        raise ValueError(f"--signal-seconds {spec.seconds}: Slurm allows at most {MAX_SIGNAL_SECONDS}")
    return "\n".join((*_head(spec, slurm), "", *_body(spec, slurm), ""))


def _head(spec: JobSpec, slurm: Slurm) -> Iterator[str]:
    name = header("the job's name", spec.name)
    logs = header("--output", slurm.logs)
    yield "#!/bin/bash"
    yield f"# {spec.nodes} nodes of {spec.gpus} GPUs, written by seektune launch slurm."
    yield f"#SBATCH --job-name={name}"
    yield f"#SBATCH --nodes={spec.nodes}"
    yield "#SBATCH --ntasks-per-node=1    # seektune starts a process for each GPU itself"
    yield f"#SBATCH --gpus-per-node={spec.gpus}"
    yield "#SBATCH --exclusive            # all cores, for data loading and feeding the GPUs"
    yield "#SBATCH --mem=0                # and all memory"
    yield f"#SBATCH --time={header('--time', slurm.time)}"
    limits = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "constraint": slurm.constraint}
    for key, value in limits.items():
        if value is not None:
            yield f"#SBATCH --{key}={header(f'--{key}', value)}"
    yield f"#SBATCH --output={logs}/{name}-%j.log"
    yield "#SBATCH --open-mode=append     # a requeued job appends to its log"
    yield f"#SBATCH --signal=B:USR1@{spec.seconds}    # to this script, that many seconds before the time limit"
    yield f"#SBATCH --{'requeue' if slurm.requeue else 'no-requeue'}"
    yield from (f"#SBATCH {option}" for option in checked_options(slurm.sbatch))


def _body(spec: JobSpec, slurm: Slurm) -> Iterator[str]:
    yield "# shellcheck disable=SC2016,SC2329  # single quotes prevent expansion here; `trap` calls the function"
    yield ""
    yield "set -uo pipefail"
    yield ""
    yield from _setup(slurm)
    yield "# Launchers and workers rendezvous on node 0. The port depends on the job's id, as nodes may be shared."
    yield 'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || exit 1'
    yield "host=${hosts%%$'\\n'*}"
    yield "port=$((20000 + SLURM_JOB_ID % 10000))"
    yield ""
    yield from _variables(spec)
    yield "# The command of each node. The folder contains the job's id, which a requeue keeps, and so its checkpoints."
    yield "command=("
    program = [f"{slurm.venv.rstrip('/')}/bin/python", "-P", "-m", "seektune"] if slurm.venv else ["seektune"]
    folder = f"runs/{spec.name}-$SLURM_JOB_ID"
    yield from (f"  {_quoted(word, folder)}" for word in spec.command(program, folder))
    yield f'  --nnodes={spec.nodes} "--rdzv-endpoint=$host:$port"'
    yield ")"
    yield ""
    yield from _step(spec, slurm)
    yield from _end(slurm)


def _setup(slurm: Slurm) -> Iterator[str]:
    if not slurm.setup:
        return
    yield "# The environment, which srun passes on to all nodes. Scripts of modules and conda use unset variables."
    yield "set +u"
    yield from (f"{setup_line(line)} || exit 1" for line in slurm.setup)
    yield "set -u"
    yield ""


def _variables(spec: JobSpec) -> Iterator[str]:
    yield "# NCCL's warnings only; INFO shows which network it uses, the first thing to check when it is slow."
    yield 'export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"'
    yield "# Keeps NCCL from bootstrapping over docker's or the loopback interface; set yours (ib0) if needed."
    yield 'export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^docker,lo,veth}"'
    yield "# Buffers of several hundred MB come and go; expandable segments fragment a GPU's memory less."
    yield 'export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"'
    for name, value in spec.environment.values:
        yield f"export {name}={shlex.quote(value)}"
    for name in spec.environment.names:
        yield f'export {name}="${{{name}:?is not set where sbatch was called}}"'
    yield ""


def _step(spec: JobSpec, slurm: Slurm) -> Iterator[str]:
    name = spec.name
    yield "# One launcher per node. srun must not kill the others when one exits: launchers notify each other and save."
    yield "step=("
    yield "  srun --ntasks-per-node=1 --kill-on-bad-exit=0"
    yield "  --cpu-bind=none    # otherwise a launcher and all its workers share one core"
    yield f'  "--output={slurm.logs}/{name}-%j-node%n.log" --open-mode=append'
    if slurm.container:
        yield f"  --container-image={shlex.quote(one_line('--container', slurm.container))}"
        if mounts := ",".join(map(expand_path, slurm.mounts)):
            yield f"  --container-mounts={shlex.quote(one_line('--mounts', mounts))}"
        yield '  "--container-workdir=$PWD"'
        if names := ",".join(spec.environment.names):
            yield f"  --container-env={names}    # from this shell, not from the image"
    yield ")"
    yield "# $SLURM_NODEID differs on each node, so it is read there."
    yield """start='exec "$@" --node-rank="$SLURM_NODEID"'"""
    yield '"${step[@]}" bash -c "$start" seektune "${command[@]}" &'
    yield "step_id=$!"
    yield ""


def _end(slurm: Slurm) -> Iterator[str]:
    yield "# Near the time limit or on preemption, srun forwards the signal to launchers, and these to workers,"
    yield f"# which finish their step, save and exit with {RESUME_ME}."
    yield "signals=0"
    yield 'forward() { [ "$signals" -gt 0 ] || kill -"$1" "$step_id" 2>/dev/null; signals=$((signals + 1)); }'
    yield "trap 'forward USR1' USR1"
    yield "trap 'forward TERM' TERM"
    yield "# a signal makes `wait` return more than 128 while the step still runs"
    yield "seen=-1 code=255"
    yield 'while [ "$code" -gt 128 ] && [ "$signals" -ne "$seen" ]; do seen=$signals; wait "$step_id"; code=$?; done'
    if slurm.requeue:
        yield f'if [ "$code" -eq {RESUME_ME} ] && [ "$signals" -gt 0 ]; then'
        # an array's own id, which its last task has, would requeue all of its tasks
        job = "$SLURM_JOB_ID" if array_of(slurm.sbatch) is None else "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
        yield f'  echo "saved; requeued as job {job}"'
        yield f'  scontrol requeue "{job}" && exit 0'
        yield '  echo "scontrol requeue failed; submit the same script with the same --run_dir to resume" >&2'
        yield "fi"
    else:
        yield f'if [ "$code" -eq {RESUME_ME} ]; then echo "saved (signals: $signals); the same --run_dir resumes"; fi'
    yield 'exit "$code"'
    yield "# Submit: seektune launch slurm ... --submit, or"
    yield f"# mkdir -p {slurm.logs} && sbatch FILE"


def _quoted(word: str, folder: str) -> str:
    """A word quoted for bash, which expands only the job id in the folder's name."""
    if word == f"--run_dir={folder}":
        return f'"{word}"'
    return shlex.quote(word)
