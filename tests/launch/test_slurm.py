"""Slurm scripts are valid and safe, and run: two nodes, a signal, a requeue, and the same losses."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.launch.job_spec import Environment, JobSpec, label
from seektune.launch.slurm import SCRIPT_VARIABLES, Slurm, write_slurm
from tests.held_run import hold
from tests.patience import HUNG
from tests.places import ROOT
from tests.read_run import losses
from tests.run_cli import CODE, seektune, worker_processes

from .fake_slurm import install
from .forked import accept_jobs
from .ports import held_port

TINY = "examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_hellaswag.yaml"
FLASH = TINY.replace("tiny", "flash")
SHELLCHECK = Path(sys.prefix) / "bin" / "shellcheck"
TASK = JobSpec("recipe.yaml", (), 16, 8, "mine")
HOSTILE = 'it\'s "a" $(touch gone) `touch gone` ; touch gone # \\ * é'
STEPS = 5
VARIANTS = {
    "plain": (TASK, Slurm()),
    "venv": (TASK, Slurm(venv="/shared/my venv", partition="gpu", account="a", qos="q", constraint="h100&ib")),
    "container": (
        JobSpec("r.yaml", (), 2, 8, "mine", Environment(("HF_TOKEN",), (("A", HOSTILE),))),
        Slurm(container="ghcr.io/you/it:1", mounts=("/a b:/data", "/c:/c"), requeue=False),
    ),
    "hostile": (JobSpec(HOSTILE, (f"--run_dir={HOSTILE}",), 2, 8, "mine", run_dir=HOSTILE), Slurm(venv=HOSTILE)),
    "one node": (JobSpec("r.yaml", (), 1, 1, "mine"), Slurm()),
    "set-up": (TASK, Slurm(setup=("module load cuda", "conda activate x"), sbatch=("array=0-3", "--reservation=r"))),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_script_passes_bash_and_shellcheck(variant: str, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(write_slurm(*VARIANTS[variant]))
    for check in (["bash", "-n"], [str(SHELLCHECK), "--severity=style", "--shell=bash"]):
        done = subprocess.run([*check, str(script)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_shellcheck_finds_missing_quotes(tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(write_slurm(TASK, Slurm()).replace('requeue "$SLURM_JOB_ID"', "requeue $SLURM_JOB_ID"))
    assert subprocess.run([str(SHELLCHECK), str(script)], capture_output=True, check=False).returncode == 1


def test_hostile_words_reach_the_command_unchanged(tmp_path: Path) -> None:
    lines = write_slurm(*VARIANTS["hostile"]).splitlines()
    array = "\n".join(lines[lines.index("command=(") : lines.index("command=(") + 12])
    array = array[: array.index("\n)") + 2]
    show = f"host=h port=1 SLURM_JOB_ID=1\n{array}\nprintf '%s\\0' \"${{command[@]}}\""
    done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True, cwd=tmp_path)
    words = done.stdout.split("\0")
    assert words[0] == f"{HOSTILE}/bin/python"
    assert HOSTILE in words
    assert f"--run_dir={HOSTILE}" in words
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "a\x1b[2J"])
def test_multi_line_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be one line of printable characters"):
        JobSpec(text, (), 1, 1, "mine")
    with pytest.raises(ValueError, match="must be one line of printable characters"):
        Environment.of([f"A={text}"])


@pytest.mark.parametrize("field", ["time", "partition", "account", "qos", "constraint", "logs"])
@pytest.mark.parametrize("text", ["a b", "$(x)", "a\n#SBATCH --wrap=x", "'", ""])
def test_words_that_need_quoting_are_refused_in_headers(field: str, text: str) -> None:
    with pytest.raises(ValueError, match="#SBATCH line accepts"):
        write_slurm(TASK, Slurm(**{field: text}))


def test_secrets_are_passed_by_name_only() -> None:
    with pytest.raises(ValueError, match="pass it by name: --env HF_TOKEN") as caught:
        Environment.of(["HF_TOKEN=hf_abc"])
    assert "hf_abc" not in str(caught.value)
    written = write_slurm(JobSpec("r", (), 1, 1, "m", Environment.of(["HF_TOKEN"])), Slurm(container="image"))
    assert 'export HF_TOKEN="${HF_TOKEN:?' in written
    assert "--container-env=HF_TOKEN" in written


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"environment": Environment.of(["port=1"])}, "--env port: the script itself uses a variable of that name"),
        ({"environment": Environment.of(["step"])}, "--env step: the script itself uses a variable of that name"),
        ({"name": "../mine"}, "must not contain /"),
        ({"seconds": 65536}, "Slurm allows at most 65535"),
    ],
)
def test_invalid_slurm_options_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write_slurm(replace(TASK, **changes), Slurm())


def test_script_variables_are_listed() -> None:
    script = "\n".join(write_slurm(task, slurm) for task, slurm in VARIANTS.values())
    assert set(re.findall(r"(?:^|\s)([a-z_]+)=(?=[$(\d'\"])", script)) == set(SCRIPT_VARIABLES)


def test_variable_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="--env A is given twice"):
        Environment.of(["A=1", "A"])


def test_any_text_becomes_a_valid_label() -> None:
    assert label("DeepSeek_V4 Tiny!") == "deepseek-v4-tiny"
    assert label("4/5") == "run-4-5"
    assert label("§") == "run"


@pytest.mark.slow
def test_mistakes_are_reported_in_one_line(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    mistakes = {
        (TINY, "--nodes=0"): "--nodes",
        (FLASH, "--nodes=3"): "takes 128 processes or a multiple",
        (FLASH.replace(".yaml", "_lora.yaml"), "--nodes=1", "--parallel.recompute=none"): "this fits: --parallel",
        ("missing.yaml", "--nodes=2"): "missing.yaml",
        (TINY, "--nodes=2", f"--out={taken}"): "exists already; name a new file",
        (TINY, "--nodes=2", "--optimiser.lr=1"): "optimizer",
        (TINY, "--nodes=2", "--gpu=h99"): "h100-80gb",
        (TINY, "--nodes=2", "--container=a", "--venv=b"): "leave --venv out",
        (TINY, "--nodes=2", "--submit", "--output", str(tmp_path / "logs")): "sbatch not found",
        (TINY,): "--nodes",
    }
    for words, said in mistakes.items():
        answer = seektune("launch", "slurm", *words)
        assert answer.returncode == 2, (words, answer.stderr)
        assert said in answer.stderr, answer.stderr
        assert len(answer.stderr.splitlines()) == 1
    forced = seektune("launch", "slurm", FLASH, "--nodes=3", "--force")
    assert forced.returncode == 0
    assert "#SBATCH --nodes=3" in forced.stdout


@pytest.fixture
def job_id() -> Iterator[str]:
    """Of a job whose port nobody else takes."""
    with held_port(range(20_000, 30_000)) as port:
        yield str(port - 20_000)


@pytest.mark.slow
def test_preempted_job_resumes_with_the_same_losses(tmp_path: Path, job_id: str) -> None:
    rows = write_hellaswag(tmp_path / "rows", 64, 8)
    settings = [f"--data.path={rows}", f"--steps={STEPS}", "--parallel.ep_size=2", "--batch.global_size=8"]
    settings += ["--batch.micro_size=2", "--batch.length=96", "--logging.to=[]"]
    settings += ["--evaluate.before=false", "--evaluate.after=false", "--evaluate.every=null"]
    undisturbed = tmp_path / "undisturbed"
    for worker in worker_processes("train", TINY, *settings, f"--run_dir={undisturbed}", world=2):
        assert worker.returncode == 0, worker.stderr
    venv = tmp_path / "my venv" / "bin"
    venv.mkdir(parents=True)
    python = venv / "python"
    accepting = tmp_path / "jobs"
    client = Path(__file__).with_name("fork_client.py")
    python.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-I", "-S", str(client), str(accepting)])} "$@"\n')
    python.chmod(0o755)
    place = tmp_path / "job"
    place.mkdir()
    home = install(place / "bin")
    run = place / "a run"
    held = tmp_path / "held"
    (home / "signal").write_text(str(held))
    words = ["launch", "slurm", str(ROOT / TINY), "--nodes=2", "--gpus-per-node=1", "--submit"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{home}:{os.environ['PATH']}",
        "FAKE_SLURM": str(home),
        "FAKE_SLURM_ID": job_id,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **hold(rank=0, step=3, file=held),
    }
    with accept_jobs(accepting):
        done = subprocess.run(
            [sys.executable, "-c", CODE, *words, f"--venv={venv.parent}", f"--run_dir={run}", *settings],
            capture_output=True,
            text=True,
            env=environment,
            cwd=place,
            timeout=HUNG,
        )
    log = "\n".join(file.read_text() for file in sorted((place / "logs").iterdir()))
    assert done.returncode == 0, done.stderr
    assert f"Submitted batch job {job_id}" in done.stdout
    assert [(home / f"code-{count}").read_text() for count in range(2)] == ["0", "0"], log
    assert "saved; requeued" in log
    assert "resuming after step 3" in log, log
    names = {file.name.rpartition("-")[2] for file in (place / "logs").iterdir()}
    assert names == {f"{job_id}.log", "node0.log", "node1.log"}
    assert losses(run) == losses(undisturbed)
    assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))
