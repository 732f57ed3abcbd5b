"""Every command that docs/launching.md shows makes the job that it says."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from seektune import cli
from seektune.launch import local
from seektune.launch.job import LaunchConfig
from tests.cli.test_cli import ROOT, TINY

PAGE = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
DOORS = {"seektune": cli.app, "automodel": cli.automodel_app}


def commands(starting: str) -> list[str]:
    """Calls in the page's blocks that begin so."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    return [line for line in lines if re.match(starting, line)]


TRAINING, JOBS = commands("seektune train|automodel"), commands("seektune launch")


@pytest.mark.parametrize("command", TRAINING)
def test_a_command_of_the_page_makes_a_job(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[LaunchConfig] = []
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    monkeypatch.setattr(local, "launch", jobs.append)
    monkeypatch.setattr("seektune.cli.launch_flags.count_gpus", lambda: 8)
    door, *words = shlex.split(command.replace("RECIPE", f"{TINY} --batch.global_size=64"))
    work = typer.main.get_command(DOORS[door])(words, standalone_mode=False)
    work()
    assert [job.processes for job in jobs] == [8]
    assert jobs[0].nodes == int((re.findall(r"--nnodes=(\d)", command) or ["1"])[0])
    assert jobs[0].max_restarts == int((re.findall(r"--max-restarts=(\d)", command) or ["0"])[0])


@pytest.mark.slow
@pytest.mark.parametrize("command", JOBS)
def test_a_command_of_the_page_writes_a_job(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    _, *words = shlex.split(
        command.replace("RECIPE", f"{TINY} --batch.global_size=128 --batch.micro_size=1 --parallel.ep_size=2")
    )
    work = typer.main.get_command(cli.app)(words, standalone_mode=False)
    work()
    assert TINY in (shown := capsys.readouterr().out)
    nodes = re.findall(r"--nodes (\d+)", command)[0]
    assert any(f"{key}{nodes}\n" in shown for key in ("--nodes=", "numNodes: ", "num_nodes: ", "replicas: ")) or (
        "pytorchjob" in command and f"replicas: {int(nodes) - 1}\n" in shown
    )
    if "--out" in command:
        assert (tmp_path / "job.sbatch").read_text(encoding="utf-8") == shown


def test_there_are_commands_to_test() -> None:
    assert (len(TRAINING), len(JOBS)) == (5, 6)
