"""A machine with 8 GPUs on which no job is started, and folders with the example rows of a page."""

from pathlib import Path

import pytest

from seektune.launch import local
from seektune.launch.job import LaunchConfig
from tests.blank_figures import blank_figures
from tests.places import ROOT
from tests.run_cli import seektune

from .guides import commands

__all__ = ["blank_figures"]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[LaunchConfig]:
    """The jobs that commands would launch, from the root of the checkout."""
    jobs: list[LaunchConfig] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    monkeypatch.setattr(local, "launch", jobs.append)
    monkeypatch.setattr("seektune.cli.launch_flags.count_gpus", lambda: 8)
    return jobs


@pytest.fixture
def any_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not checked: this machine's is not that of a node. tests/planner checks that shipped recipes fit."""
    monkeypatch.setattr("seektune.workflows.preflight.check_memory", lambda *_: None)


@pytest.fixture(scope="module")
def example_rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the repository's recipes and the example rows that the page's first command of SeekTune writes, and
    what that command says. The page is the test module's `PAGE`."""
    page: str = request.module.PAGE
    folder = tmp_path_factory.mktemp("page")
    (folder / "examples").symlink_to(ROOT / "examples")
    first = next(each for each in commands(page) if each.words[0] == "seektune")
    assert first.words[1:3] == ("data", "example")
    done = seektune(*first.words[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def place(example_rows: tuple[Path, str]) -> Path:
    """The folder of `example_rows`."""
    return example_rows[0]
