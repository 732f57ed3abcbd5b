"""A launcher in this process that waits as long as a slow machine needs."""

from collections.abc import Iterator

import pytest

from seektune.launch import worker_group
from tests.patience import HUNG

from .ports import held_port


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cause may come long after its consequence."""
    monkeypatch.setattr(worker_group, "ROOT_CAUSE_WAIT", HUNG)


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Where the nodes of this test meet."""
    with held_port() as port:
        yield f"127.0.0.1:{port}"
