"""Every command that docs/launching.md shows makes the job that it says."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from seektune import cli
from seektune.launch.job import LaunchConfig
from tests.cli.test_cli import TINY
from tests.places import ROOT

from .guides import CONSOLE_SCRIPTS

PAGE = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")


def commands(starting: str) -> list[str]:
    """Calls in the page's blocks that begin so."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    return [line for line in lines if re.match(starting, line)]


TRAINING, JOBS = commands("seektune train|automodel"), commands("seektune launch")


@pytest.mark.parametrize("command", TRAINING)
def test_a_command_of_the_page_makes_a_job(command: str, launched: list[LaunchConfig]) -> None:
    door, *words = shlex.split(command.replace("RECIPE", f"{TINY} --batch.global_size=64"))
    work = typer.main.get_command(CONSOLE_SCRIPTS[door])(words, standalone_mode=False)
    work()
    assert [job.processes for job in launched] == [8]
    assert launched[0].nodes == int((re.findall(r"--nnodes=(\d)", command) or ["1"])[0])
    assert launched[0].max_restarts == int((re.findall(r"--max-restarts=(\d)", command) or ["0"])[0])


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
