"""Whatever the bytes of others hold: they are read, or refused in one printable line, in work that grows as they do.

Longer runs, also on bytes that coverage guides: `python -m tests.fuzz.run`.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.found import FOUND
from tests.fuzz.mutate import grown, inputs
from tests.fuzz.table import TARGETS
from tests.fuzz.target import Read, Target

EXAMPLES = 60
IN_CI = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
LARGE = 100
"""Copies of what a document repeats; twice as many must take about twice the work."""


@pytest.fixture(params=TARGETS.values(), ids=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


@pytest.fixture
def read(target: Target, tmp_path: Path) -> Read:
    return target.open(tmp_path)


def test_documents_are_read_and_what_was_found_is_refused(target: Target, read: Read, tmp_path: Path) -> None:
    assert [target.accepts(read, seed, tmp_path) for seed in target.seeds] == [True] * len(target.documents)
    for document in FOUND.get(target.name, ()):
        target.accepts(read, target.encode(document), tmp_path)


@pytest.mark.slow
def test_anything_is_read_or_refused_in_one_line(target: Target, read: Read, tmp_path: Path) -> None:
    outcomes = set()

    @IN_CI
    @given(inputs(target))
    def anything(content: bytes) -> None:
        outcomes.add(target.accepts(read, content, tmp_path))

    anything()
    assert outcomes == {True, False}


@pytest.mark.slow
def test_work_grows_as_the_input_does(target: Target, read: Read, tmp_path: Path) -> None:
    document = next(each for each in target.documents if not isinstance(each, str))
    for small, large in zip(grown(document, LARGE), grown(document, 2 * LARGE), strict=True):
        fewer, more = (calls(partial(target.accepts, read, target.encode(each), tmp_path)) for each in (small, large))
        assert more <= 2.5 * fewer + 1000, (fewer, more, str(large)[:500])


def calls(work: Callable[[], object]) -> int:
    """Calls of functions, Python's own included, during some work."""
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted
