"""A fake Slurm of two nodes on this machine: sbatch, srun and scontrol that run their commands.

FAKE_SLURM names the folder of the programs, FAKE_SLURM_ID the job's number. A file `signal` there names another file:
once that exists, the first run of the job gets SIGUSR1 on its script alone, as `--signal=B:USR1@N` would send it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "scontrol")


def install(folder: Path) -> Path:
    """Create the programs in a folder for PATH."""
    folder.mkdir()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__)}" {name} "$@"\n')
        program.chmod(0o755)
    return folder


def job_id() -> str:
    """Also decides the port where the nodes meet."""
    return os.environ["FAKE_SLURM_ID"]


def sbatch(home: Path, words: list[str]) -> int:
    """Run the script until it is not requeued."""
    script = words[-1]
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", Path(script).read_text(), re.MULTILINE))
    environment = {
        **os.environ,
        "SLURM_JOB_ID": job_id(),
        "SLURM_JOB_NODELIST": "two",
        "SLURM_NNODES": options["nodes"],
    }
    log = Path(options["output"].replace("%j", job_id()))
    for count in range(3):
        with log.open("a") as out:
            job = subprocess.Popen(["bash", script], env=environment, stdout=out, stderr=out)
        if count == 0 and (home / "signal").exists():
            held = Path((home / "signal").read_text())
            while job.poll() is None and not held.exists():
                time.sleep(0.02)
            job.send_signal(signal.SIGUSR1)
        code = job.wait()
        (home / f"code-{count}").write_text(str(code))
        if not (home / "requeued").exists():
            break
        (home / "requeued").unlink()
    print(f"Submitted batch job {job_id()}")
    return 0


def srun(words: list[str]) -> int:
    """Start the command once for each node; signals go to all, the highest exit code counts."""
    begin = words.index("bash")
    output = next(word for word in words[:begin] if word.startswith("--output=")).removeprefix("--output=")
    tasks = []
    for node in range(int(os.environ["SLURM_NNODES"])):
        with Path(output.replace("%j", job_id()).replace("%n", str(node))).open("a") as out:
            environment = {**os.environ, "SLURM_NODEID": str(node), "SLURM_PROCID": str(node)}
            tasks.append(subprocess.Popen(words[begin:], env=environment, stdout=out, stderr=out))
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: [task.send_signal(number) for task in tasks])
    return max(task.wait() for task in tasks)


def scontrol(home: Path, words: list[str]) -> int:
    """Print the nodes' names, or record a requeue."""
    if words[:2] == ["show", "hostnames"]:
        print("127.0.0.1\n127.0.0.2")
    elif words == ["requeue", job_id()]:
        (home / "requeued").touch()
    else:
        return 1
    return 0


if __name__ == "__main__":
    here = Path(os.environ["FAKE_SLURM"])
    name, given = sys.argv[1], sys.argv[2:]
    sys.exit(sbatch(here, given) if name == "sbatch" else srun(given) if name == "srun" else scontrol(here, given))
