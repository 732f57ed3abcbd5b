"""Searching layouts: all that are offered fit and can be built, and the fewest nodes are the fewest."""

from dataclasses import replace

import pytest

from seektune.parallel.dims import make_dims
from seektune.planner.hardware import Cluster
from seektune.planner.memory import first_ranks, fullest
from seektune.planner.report import overrides
from seektune.planner.search import Candidate, fewest_nodes, nearest, search
from seektune.workflows.planning import ordered
from tests.places import TINY

from .jobs import layout, recipe

JOB = layout(TINY, 1, "batch.global_size=16", "batch.length=256", "model.dtype=bf16").job


def cluster(gpus: int, megabytes: float) -> Cluster:
    return Cluster("small", gpus, 2, round(megabytes * 1e6) + 600_000_000, 1e12, 1e11, 1e10, 1e9)


@pytest.fixture(scope="module")
def found() -> list[Candidate]:
    return search(JOB, cluster(4, 2000), ordered)


def test_layouts_are_sorted_and_fit(found: list[Candidate]) -> None:
    assert len(found) > 20
    seconds = [each.time.seconds for each in found]
    assert seconds == sorted(seconds)
    for each in found:
        assert each.memory.spare(cluster(4, 2000).memory) >= 0
        make_dims(each.parallel, 4, JOB.config)


def test_no_layout_stands_there_twice(found: list[Candidate]) -> None:
    assert len({tuple(overrides(each)) for each in found}) == len({str(each.layout) for each in found}) == len(found)
    assert {each.parallel.recompute for each in found} == {"none", "block", "selective"}


@pytest.mark.parametrize("pp", [1, 2])
def test_rows_of_a_micro_batch_are_varied_with_a_pipeline_and_without(found: list[Candidate], pp: int) -> None:
    rows = {each.layout.rows_at_a_time for each in found if each.parallel.pp_size == pp}
    assert rows >= {1, 2, 4}
    most = max(found, key=lambda each: (each.parallel.pp_size == pp, each.layout.rows_at_a_time))
    words = [word.removeprefix("--") for word in overrides(most)]
    again = layout(TINY, 4, "batch.global_size=16", "batch.length=256", "model.dtype=bf16", *words)
    assert again.rows_at_a_time == most.layout.rows_at_a_time


def test_its_words_give_a_recipe_the_layout(found: list[Candidate]) -> None:
    best = found[0]
    words = [word.removeprefix("--") for word in overrides(best)]
    again = layout(TINY, 4, "batch.global_size=16", "batch.length=256", "model.dtype=bf16", *words)
    assert fullest(first_ranks(again)).upper["total"] == best.memory.upper["total"]


def test_the_nearest_differs_least() -> None:
    asked = JOB.with_parallel({"pp_size": 2, "recompute": "none"})
    roomy = nearest(asked, cluster(4, 2000), ordered)
    assert roomy is not None
    assert (roomy.parallel.pp_size, roomy.parallel.recompute) == (2, "none")
    needs = round(roomy.memory.upper["total"])
    tight = nearest(asked, replace(cluster(4, 2000), memory=needs - 1), ordered)
    assert tight is not None
    assert tight.parallel != roomy.parallel
    assert tight.memory.upper["total"] < needs


def test_recipes_of_examples_can_be_searched() -> None:
    assert recipe(TINY).parallel.layout == "given"
    nodes = fewest_nodes(JOB, cluster(2, 2000), ordered)
    assert nodes is not None
    assert nodes[0] == 1
    assert fewest_nodes(JOB, cluster(2, -599), ordered) is None


def test_streamed_weights_have_one_process() -> None:
    job = replace(JOB, streamed=True)
    assert search(job, cluster(2, 2000), ordered) == []
    nodes = fewest_nodes(job, cluster(2, 2000), ordered)
    assert nodes is not None
    assert (nodes[0], nodes[1].layout.dims.world) == (1, 1)
