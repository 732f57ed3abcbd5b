"""Searching layouts: all candidates fit and can be built, and the fewest nodes are the fewest."""

from dataclasses import replace

import pytest

from seektune.parallel.dims import make_dims
from seektune.planner.hardware import Cluster
from seektune.planner.memory import first_ranks, peak_rank
from seektune.planner.report import overrides
from seektune.planner.search import Candidate, fewest_nodes, nearest, search
from seektune.workflows.planning import ordered
from tests.places import TINY

from .jobs import layout, recipe

JOB = layout(TINY, 1, "batch.global_size=16", "batch.length=256", "model.dtype=bf16").job


def cluster(gpus: int, megabytes: float) -> Cluster:
    return Cluster("small", gpus, 2, round(megabytes * 1e6) + 600_000_000, 1e12, 1e11, 1e10, 1e9)


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    return search(JOB, cluster(4, 2000), ordered)


@pytest.mark.slow
def test_layouts_are_sorted_and_fit(candidates: list[Candidate]) -> None:
    assert len(candidates) > 20
    seconds = [each.time.seconds for each in candidates]
    assert seconds == sorted(seconds)
    for each in candidates:
        assert each.memory.spare(cluster(4, 2000).memory) >= 0
        make_dims(each.parallel, 4, JOB.config)


def test_layouts_are_unique(candidates: list[Candidate]) -> None:
    assert (
        len({tuple(overrides(each)) for each in candidates})
        == len({str(each.layout) for each in candidates})
        == len(candidates)
    )
    assert {each.parallel.recompute for each in candidates} == {"none", "block", "selective"}


@pytest.mark.parametrize("pp", [1, 2])
def test_micro_batch_rows_are_searched_with_and_without_pipeline(candidates: list[Candidate], pp: int) -> None:
    rows = {each.layout.rows_at_a_time for each in candidates if each.parallel.pp_size == pp}
    assert rows >= {1, 2, 4}
    most = max(candidates, key=lambda each: (each.parallel.pp_size == pp, each.layout.rows_at_a_time))
    words = [word.removeprefix("--") for word in overrides(most)]
    again = layout(TINY, 4, "batch.global_size=16", "batch.length=256", "model.dtype=bf16", *words)
    assert again.rows_at_a_time == most.layout.rows_at_a_time


def test_overrides_reproduce_the_layout(candidates: list[Candidate]) -> None:
    best = candidates[0]
    words = [word.removeprefix("--") for word in overrides(best)]
    again = layout(TINY, 4, "batch.global_size=16", "batch.length=256", "model.dtype=bf16", *words)
    assert peak_rank(first_ranks(again)).upper["total"] == best.memory.upper["total"]


def test_overrides_leave_out_messages_that_are_not_sent(candidates: list[Candidate]) -> None:
    """A layout with the experts in one process is refused with settings of their messages."""
    sent = {"ep_message_dtype": "fp8", "ep_parts": 2}
    for ep_size in (1, 2):
        best = next(each for each in candidates if each.parallel.ep_size == ep_size)
        job = best.layout.job.with_parallel(sent)
        words = overrides(replace(best, layout=replace(best.layout, job=job)))
        given = [f"parallel.{key}={value}" for key, value in sent.items()]
        again = recipe(TINY, *given, *(word.removeprefix("--") for word in words)).parallel
        assert (again.ep_message_dtype, again.ep_parts) == (("fp8", 2) if ep_size > 1 else ("model", 1))


@pytest.mark.slow
def test_nearest_layout_changes_the_fewest_settings() -> None:
    asked = JOB.with_parallel({"pp_size": 2, "recompute": "none"})
    roomy = nearest(asked, cluster(4, 2000), ordered)
    assert roomy is not None
    assert (roomy.parallel.pp_size, roomy.parallel.recompute) == (2, "none")
    needs = round(roomy.memory.upper["total"])
    tight = nearest(asked, replace(cluster(4, 2000), memory=needs - 1), ordered)
    assert tight is not None
    assert tight.parallel != roomy.parallel
    assert tight.memory.upper["total"] < needs


@pytest.mark.slow
def test_example_recipe_can_be_searched() -> None:
    assert recipe(TINY).parallel.layout == "given"
    nodes = fewest_nodes(JOB, cluster(2, 2000), ordered)
    assert nodes is not None
    assert nodes[0] == 1
    assert fewest_nodes(JOB, cluster(2, -599), ordered) is None


def test_streamed_weights_use_one_process() -> None:
    job = replace(JOB, streamed=True)
    assert search(job, cluster(2, 2000), ordered) == []
    nodes = fewest_nodes(job, cluster(2, 2000), ordered)
    assert nodes is not None
    assert (nodes[0], nodes[1].layout.dims.world) == (1, 1)
