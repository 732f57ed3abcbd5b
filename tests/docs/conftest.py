"""A machine with 8 GPUs on which no job is started."""

import pytest

from seektune.launch import local
from seektune.launch.job import LaunchConfig
from tests.places import ROOT


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
