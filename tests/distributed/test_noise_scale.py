"""Any mesh finds the gradients of the halves of a step that one device finds."""

from typing import Any

import pytest

from seektune.model.objective import CROSS_ENTROPY
from seektune.parallel.model import ParallelModel
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.noise_scale import half_gradients

from .mesh_law import SHALLOW, Subject, alone, own_data, spread
from .workers import run_workers

ROWS = Subject(((131,), (1, 3, 9, -5, 30), (2,), (64,)), micro_size=1, config=SHALLOW, seed=3)


def halves(model: ParallelModel) -> list[tuple[float, float]]:
    accumulate_in_fp32(model.parameters())
    found = half_gradients(model, own_data(model, ROWS), ROWS.loss, CROSS_ENTROPY)
    return [(each.square, each.tokens) for each in found]


def halves_spread(parallel: dict[str, Any]) -> list[tuple[float, float]]:
    return halves(spread(parallel, ROWS))


@pytest.fixture(scope="module")
def expected() -> list[tuple[float, float]]:
    return halves(alone(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"dp_replicate": 2}),
        (2, {"ep_size": 2}),
        (4, {"pp_size": 2, "cp_size": 2, "pipeline": {"schedule": "1f1b"}}),
    ],
    ids=str,
)
def test_halves_are_those_of_one_device(
    world: int, parallel: dict[str, Any], expected: list[tuple[float, float]]
) -> None:
    assert len(expected) == 2
    for found in run_workers(world, halves_spread, parallel):
        assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
        assert [square for square, _ in found] == pytest.approx([square for square, _ in expected], rel=2e-5)
