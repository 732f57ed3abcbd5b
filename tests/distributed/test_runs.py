"""Runs on many processes: resumed with other sizes, stopped, spoilt; what happens to one is known to all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seektune.checkpoint import check_train_state
from seektune.train.config import GuardConfig
from tests.read_run import losses, validations

from .mesh_law import assembled
from .runs import End, Plot, run
from .workers import run_workers

SLOW = pytest.mark.slow
FOUR = {"pp_size": 2, "ep_size": 2}


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text())


def saved(folder: Path) -> list[str]:
    found = sorted((folder / "checkpoints").iterdir())
    for place in found:
        check_train_state(place)
    return [place.name for place in found]


def same_course(folder: Path, other: Path, rel: float) -> None:
    for mine, theirs in zip(losses(folder), losses(other), strict=True):
        assert mine == pytest.approx(theirs, rel=rel)
    for mine, theirs in zip(validations(folder), validations(other), strict=True):
        assert mine == pytest.approx(theirs, rel=rel)


@SLOW
@pytest.mark.parametrize(
    ("dtype", "master", "rel"),
    [(torch.float32, "fp32", 1e-4), (torch.bfloat16, "fp32", 5e-3), (torch.bfloat16, "bf16_stochastic", 1e-2)],
)
def test_a_run_goes_on_with_other_sizes(tmp_path: Path, dtype: torch.dtype, master: str, rel: float):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, Plot({}, 8, dtype, master))
    layouts = [(4, {"cp_size": 2, "ep_size": 4}, 2), (4, FOUR, 4), (2, {"pp_size": 2}, 6)]
    for world, parallel, until in layouts:
        plot = Plot(parallel, 8, dtype, master, happenings={until: "SIGTERM to rank 1"})
        ends = run_workers(world, run, cut, plot)
        assert [end.error.split(":")[0] for end in ends] == ["Interrupted"] * world
        assert {end.step for end in ends} == {until}
    end = run(cut, Plot({}, 8, dtype, master))
    assert (end.error, end.step) == ("", 8)
    same_course(cut, whole, rel)


@SLOW
def test_a_run_of_muon_goes_on_with_other_sizes(tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, Plot({}, 5, optimizer="muon"))
    for world, parallel, until in ((2, {}, 2), (4, FOUR, 4)):
        plot = Plot(parallel, 5, optimizer="muon", happenings={until: "SIGTERM to rank 1"})
        ends = run_workers(world, run, cut, plot)
        assert {end.step for end in ends} == {until}
    end = run(cut, Plot({}, 5, optimizer="muon"))
    assert (end.error, end.step) == ("", 5)
    same_course(cut, whole, 1e-4)


LAYOUTS = [(2, {}), (2, {"pp_size": 2}), (4, FOUR)]


def told(ends: list[End]) -> set[tuple[str, int]]:
    return {(end.error, end.step) for end in ends}


@SLOW
@pytest.mark.parametrize(("world", "parallel"), LAYOUTS)
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path, world: int, parallel: dict[str, int]):
    ends = run_workers(world, run, tmp_path, Plot(parallel, happenings={3: "SIGTERM to rank 1"}))
    assert [end.error for end in ends] == [
        "Interrupted: SIGTERM" if rank == 1 else "Interrupted: a signal to another process" for rank in range(world)
    ]
    assert {end.step for end in ends} == {3}
    assert saved(tmp_path) == ["step-000002", "step-000003"]


@SLOW
def test_a_worker_is_not_ended_by_the_second_of_many_signals(tmp_path: Path):
    ends = run_workers(2, run, tmp_path, Plot({"ep_size": 2}, happenings={3: "many signals"}))
    assert told(ends) == {("Interrupted: SIGUSR1", 3)}
    assert saved(tmp_path)[-1] == "step-000003"


@SLOW
@pytest.mark.parametrize(
    ("world", "parallel", "what"),
    [
        (*LAYOUTS[0], "NaN gradient"),
        (*LAYOUTS[1], "NaN loss"),
        (*LAYOUTS[2], "NaN loss"),
        (*LAYOUTS[2], "NaN gradient"),
    ],
)
def test_what_is_not_finite_on_one_process_stops_all(tmp_path: Path, world: int, parallel: dict[str, int], what: str):
    ends = run_workers(world, run, tmp_path, Plot(parallel, happenings={4: what}))
    assert len(told(ends)) == 1
    said = "the loss is not finite in micro-batch" if what == "NaN loss" else "the gradient is not finite in layers."
    assert said in ends[0].error
    assert "The state before this step is saved in" in ends[0].error
    assert ends[0].step == 3
    assert facts(tmp_path / "checkpoints" / "step-000003")["stream"] == {"drawn": 3}
    assert saved(tmp_path)[-1] == "step-000003"


@SLOW
@pytest.mark.parametrize(("world", "parallel"), LAYOUTS[1:])
def test_a_step_that_is_not_finite_is_skipped_by_all(tmp_path: Path, world: int, parallel: dict[str, int]):
    plot = Plot(parallel, guard=GuardConfig(skip_nonfinite=1), happenings={4: "NaN loss"})
    ends = run_workers(world, run, tmp_path / "many", plot)
    assert told(ends) == {("", 6)}
    assert [step for step, _ in losses(tmp_path / "many")] == [1, 2, 3, 5, 6]
    run(tmp_path / "one", Plot({}, guard=plot.guard, happenings=plot.happenings))
    same_course(tmp_path / "many", tmp_path / "one", 1e-5)


@SLOW
@pytest.mark.parametrize(("world", "parallel"), LAYOUTS[1:])
def test_all_go_back_from_a_spike(tmp_path: Path, world: int, parallel: dict[str, int]):
    guard = GuardConfig(spike_factor=1.5, spike_action="rollback")
    plot = Plot(parallel, 13, guard=guard, happenings={11: "spike"})
    ends = run_workers(world, run, tmp_path, plot)
    assert {(end.error, end.step, end.drawn) for end in ends} == {("", 13, 14)}
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 14))
    assert max(loss for _, loss in losses(tmp_path)) < 10
    assert saved(tmp_path)[-1] == "step-000013"


@SLOW
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_on_one_process_is_known_to_all(tmp_path: Path, asynchronous: bool):
    plot = Plot(FOUR, every=3, asynchronous=asynchronous, happenings={3: "full disk"})
    ends = run_workers(4, run, tmp_path, plot)
    assert len(told(ends)) == 1
    assert "OSError" in ends[0].error
    assert "File too large" in ends[0].error
    assert saved(tmp_path) == []
    # beside the training the first failure is only told; the next save, which all wait for, must do
    assert ends[0].step == (6 if asynchronous else 3)


@SLOW
def test_a_save_makes_up_for_one_that_failed(tmp_path: Path):
    ends = run_workers(2, run, tmp_path, Plot({"ep_size": 2}, every=3, happenings={3: "full disk", 5: "room"}))
    assert told(ends) == {("", 6)}
    assert saved(tmp_path) == ["step-000006"]


@SLOW
@pytest.mark.parametrize("master", ["fp32", "bf16_stochastic"])
def test_copies_of_bf16_weights_stay_equal(tmp_path: Path, master: str):
    ends = run_workers(4, run, tmp_path, Plot({"dp_replicate": 2, "ep_size": 2}, 4, torch.bfloat16, master))
    whole = run(tmp_path / "one", Plot({}, 4, torch.bfloat16, master)).state
    assert set().union(*(end.state for end in ends)) == whole.keys()
    found = assembled([end.state for end in ends], whole)  # which compares copies bit by bit
    assert all(np.isfinite(array).all() for array in found.values())
    assert [loss for _, loss in losses(tmp_path)] == pytest.approx(
        [loss for _, loss in losses(tmp_path / "one")], rel=5e-3
    )
