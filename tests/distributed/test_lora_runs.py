"""Runs that train adapters on many processes: resumed exactly, with other sizes, and with the same files at the end."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seektune.checkpoint import tensor_names
from seektune.lora.config import LoraConfig
from seektune.lora.format import read_adapter
from tests.read_run import losses

from .mesh_law import assembled
from .runs import End, Plot, run
from .test_runs import same_course
from .workers import run_workers

LORA = LoraConfig(targets=("attn", "ffn.experts", "ffn.shared_experts", "mtp.0"), rank=2)
FOUR = {"pp_size": 2, "ep_size": 2}


@pytest.mark.slow
def test_the_adapter_of_two_processes_is_that_of_one(tmp_path: Path):
    plot = Plot({}, 2, every=None, lora=LORA)
    one = run(tmp_path / "one", plot)
    ends = run_workers(2, run, tmp_path / "two", replace(plot, parallel={"ep_size": 2}))
    assert [end.error for end in (one, *ends)] == [""] * 3
    names = {name.split(":")[0].removeprefix("model.").removeprefix("optimizer.") for name in one.state}
    saved = tensor_names(tmp_path / "two" / "checkpoints" / "step-000002")
    assert {name for name in saved if name.startswith("model.")} == {f"model.{name}" for name in names}
    here, there = (read_adapter(tmp_path / name / "model")[0] for name in ("one", "two"))
    assert list(here) == list(there)
    for name, change in here.items():
        np.testing.assert_allclose(there[name].a, change.a, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(there[name].b, change.b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_of_adapters_goes_on_with_other_sizes(tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, Plot({}, 8, lora=LORA))
    for world, parallel, until in [(4, FOUR, 2), (2, {"cp_size": 2, "ep_size": 2}, 4), (2, {"pp_size": 2}, 6)]:
        plot = Plot(parallel, 8, happenings={until: "SIGTERM to rank 1"}, lora=LORA)
        ends = run_workers(world, run, cut, plot)
        assert [end.error.split(":")[0] for end in ends] == ["Interrupted"] * world
    end = run(cut, Plot({}, 8, lora=LORA))
    assert (end.error, end.step) == ("", 8)
    same_course(cut, whole, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "lora"),
    [
        ({"ep_size": 2}, {"dropout": 0.2}),
        ({"pp_size": 2}, {"dropout": 0.2}),
        ({"pp_size": 2}, {"shared_a": True}),
        ({"ep_size": 2}, {"dora": True, "targets": ("attn",)}),
    ],
    ids=str,
)
def test_on_the_same_sizes_it_goes_on_bit_for_bit(tmp_path: Path, parallel: dict[str, int], lora: dict[str, object]):
    plot = Plot(parallel, 5, lora=LoraConfig.model_validate(LORA.model_dump() | lora))
    whole = run_workers(2, run, tmp_path / "whole", plot)
    run_workers(2, run, tmp_path / "cut", replace(plot, happenings={3: "SIGTERM to rank 1"}))
    again = run_workers(2, run, tmp_path / "cut", plot)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    ours, theirs = (_whole(ends) for ends in (again, whole))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def _whole(ends: list[End]) -> dict[str, np.ndarray]:
    """The state of all processes."""
    pieces = [end.state for end in ends]
    shapes: dict[str, list[int]] = {}
    for held in pieces:
        for name, (_, box) in held.items():
            before = shapes.setdefault(name, [0] * len(box))
            shapes[name] = [max(old, part.stop) for old, part in zip(before, box, strict=True)]
    whole = {name: (np.empty(shape), ()) for name, shape in shapes.items()}
    return assembled(pieces, whole)
