"""What a mesh could stumble over: processes without long texts, tokens or lessons, idle parts, bf16."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from seektune.train.config import LossConfig

from .mesh_law import SHALLOW, SHORT, Found, Pieces, Subject, alone, errors, look, look_alone, look_spread
from .workers import run_workers

SLOW = pytest.mark.slow
PP, EP, PP_EP = {"pp_size": 2}, {"ep_size": 2}, {"pp_size": 2, "ep_size": 2}
ZBV = {"pp_size": 2, "pipeline": {"schedule": "zbv"}}
LONG_AND_SHORT = ((300,), (2,), (200, 90), (1,))
"""With two processes, one gets all long rows."""


def same(world: int, parallel: dict[str, Any], subject: Subject, bound: float = 1e-5) -> list[Found]:
    everywhere = run_workers(world, look_spread, parallel, subject)
    one = look_alone(subject)
    for found in everywhere:
        assert found.parts == pytest.approx(one.parts, rel=bound)
        assert found.norm == pytest.approx(one.norm, rel=bound)
        assert found.loads == one.loads
        np.testing.assert_allclose(found.scores, one.scores, rtol=1e-4, atol=1e-4)
    apart = errors([found.gradients for found in everywhere], one.gradients)
    assert max(apart.values()) <= bound, sorted(apart.items(), key=lambda item: -item[1])[:5]
    return everywhere


@SLOW
@pytest.mark.parametrize(("world", "parallel"), [(2, {}), (2, EP), (4, PP), (4, PP_EP)])
def test_one_process_has_only_texts_without_entries(world: int, parallel: dict[str, Any]):
    same(world, parallel, Subject(LONG_AND_SHORT, 1, SHALLOW))


@SLOW
@pytest.mark.parametrize(("world", "parallel"), [(4, EP), (4, PP_EP), (4, {"cp_size": 2, "ep_size": 4})])
def test_experts_and_processes_that_nobody_goes_to(world: int, parallel: dict[str, Any]):
    subject = Subject(SHORT, 1, SHALLOW, crowded=True)
    loads = same(world, parallel, subject)[0].loads
    assert {tuple(load > 0 for load in each) for each in loads.values()} == {(True,) * 3 + (False,) * 5}


@SLOW
@pytest.mark.parametrize(("world", "parallel"), [(2, EP), (4, PP), (4, {"cp_size": 4}), (2, ZBV)])
def test_rows_without_a_text_or_a_lesson(world: int, parallel: dict[str, Any]):
    same(world, parallel, Subject(((70,), (-70,), (1,), (-3, 1, 1), (9, -4), (-1,), (1,), (2,)), 1, SHALLOW))


@SLOW
@pytest.mark.parametrize(("world", "parallel"), [(2, EP), (4, PP_EP), (2, ZBV), (4, ZBV)])
def test_without_mtp_and_balance_loss(world: int, parallel: dict[str, Any]):
    """With four stages of four layers, the last one has nothing to do but to run the head."""
    loss = LossConfig(mtp_weight=0.0, balance_weight=0.0)
    found = same(world, parallel, Subject(SHORT, 1, SHALLOW, loss=loss))[0]
    assert found.parts["mtp_loss"] == found.parts["balance_loss"] == 0
    assert sorted(found.loads) == [0, 1, 2, 3]


@SLOW
@pytest.mark.parametrize(("world", "parallel"), [(2, EP), (4, PP)])
def test_a_model_without_an_mtp_block(world: int, parallel: dict[str, Any]):
    config = SHALLOW.replace(num_nextn_predict_layers=0, compress_ratios=[0, 4, 128, 4])
    assert same(world, parallel, Subject(SHORT, 1, config))[0].parts["mtp_loss"] == 0


BF16 = Subject(SHORT, 2, SHALLOW, torch.bfloat16)


@SLOW
@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {}),
        (4, {"dp_replicate": 2, "ep_size": 2}),
        (2, {"cp_size": 2}),
        (2, {**EP, "recompute": "selective"}),
        (2, PP),
        (4, {**ZBV, "ep_size": 2, "pipeline": {"schedule": "zbv", "microbatch": 1}}),
    ],
)
def test_bf16_gradients_are_as_near_to_the_truth_as_one_devices(world: int, parallel: dict[str, Any]):
    """Weights are bf16, those of mHC, sinks and compressors fp32, in the same blocks; the indexer is frozen."""
    size = 1 if "pipeline" in parallel else BF16.micro_size
    everywhere = run_workers(world, look_spread, parallel, replace(BF16, micro_size=size))
    one = look_alone(BF16)
    truth = truly()
    for found in everywhere:
        assert found.parts == pytest.approx(one.parts, rel=1e-2)
    mesh = errors([found.gradients for found in everywhere], truth)
    device = errors([one.gradients], truth)
    assert not [name for name in mesh if ".indexer." in name]
    assert np.mean(list(device.values())) < 0.1
    assert np.mean(list(mesh.values())) < 1.2 * np.mean(list(device.values()))
    worse = {name: (mesh[name], device[name]) for name in mesh if mesh[name] > 2 * device[name] + 0.02}
    assert not worse


@cache
def truly() -> Pieces:
    """The gradients of the same bf16 weights by fp32 arithmetic."""
    model = alone(replace(BF16, dtype=torch.float32))
    with torch.no_grad():
        for piece in alone(BF16).shards().items():
            model.shards()[piece[0]].tensor.copy_(piece[1].tensor)
    return look(model, BF16).gradients
