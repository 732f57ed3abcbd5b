"""Every command that docs/launching.md shows makes the job that it says."""

import re
import shlex

import pytest
import typer

from seektune import cli
from seektune.launch import launch
from seektune.launch.job import Job

from .test_cli import ROOT, TINY

PAGE = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
DOORS = {"seektune": cli.app, "automodel": cli.seed_app}


def commands() -> list[str]:
    """Calls in the page's blocks; what Slurm runs has Slurm's variables replaced."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    inner = [line.split("'")[1] if line.startswith("srun") else line for line in lines]
    return [line.replace("$SLURM_NNODES", "4").replace("$SLURM_NODEID", "3") for line in inner]


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_makes_a_job(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    monkeypatch.setattr(launch, "launch", jobs.append)
    monkeypatch.setattr("seektune.cli.start._gpus", lambda: 8)
    door, *words = shlex.split(command.replace("RECIPE", f"{TINY} --batch.global_size=64"))
    work = typer.main.get_command(DOORS[door])(words, standalone_mode=False)
    work()
    assert [job.processes for job in jobs] == [8]
    assert jobs[0].nodes == int((re.findall(r"--nnodes=(\d)", command) or ["1"])[0])
    assert jobs[0].max_restarts == int((re.findall(r"--max-restarts=(\d)", command) or ["0"])[0])


def test_there_are_commands_to_test() -> None:
    assert len(commands()) == 6
