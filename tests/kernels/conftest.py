"""Triton's interpreter, which is chosen when Triton is imported."""

from collections.abc import Iterator

import pytest

from tests.forks import Run, interpreter
from tests.places import ROOT


@pytest.fixture(scope="session")
def in_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs code whose Triton kernels are interpreted."""
    pytest.importorskip("triton")
    settings = {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}
    with interpreter(
        "tests.kernels.interpreted, seektune.kernels.triton.sinkhorn, torch._dynamo",
        tmp_path_factory.mktemp("interpreted"),
        **settings,
    ) as run:
        yield run
