"""Adapters on frozen weights, quantized or plain: any mesh finds and learns what one device does; no other moves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seektune.train.config import LossConfig

from .lora_law import Adapted, Seen, bytes_held, learn_adapted, look_adapted, made, read_base, write_and_read
from .mesh_law import SHALLOW, SHORT, Course, Found, Subject, errors, whole_model
from .test_mesh_laws import BOUND, DIFFERENCES, SCHEDULES, Case, assert_small, piped
from .workers import run_workers

DIFFERENCE = 1e-6
"""Rounding of rewards: some hundredths of the difference of two sums of hundreds of log-probabilities."""

SLOW = pytest.mark.slow
LOSS = LossConfig(mtp_weight=0.3, balance_weight=0.05)
RICH = Adapted(Subject(SHORT, config=SHALLOW.replace(moe_intermediate_size=32), loss=LOSS, seed=4))
"""Every mechanism, in rows of 2 to 190 tokens; widths that FP4 can hold."""
FEW = Adapted(replace(RICH.subject, lengths=((131,), (1, 3, 9, -5, 30), (2,), (64,)), seed=3))
PLAIN = replace(FEW, quantized=False)
PAIRS = ((131, 20), (9, 3, -5, 30, 12), (2, 40), (64, 7))
PREFERRING = Adapted(replace(RICH.subject, lengths=PAIRS, objective="dpo", weighted=True, adapters_off=True))
MAPS = ("attn", "attn.compressor", "ffn.shared_experts", "mtp.0")

AXES = [
    Case(2, {}),
    Case(2, {"dp_replicate": 2}),
    Case(2, {"ep_size": 2}),
    Case(2, {"cp_size": 2}),
    Case(2, piped("1f1b"), 1),
    Case(4, piped("1f1b", ep_size=2), 1),
    Case(4, {"ep_size": 2}, 1),
]
FEWER = [AXES[0], *AXES[2:4], AXES[5]]
"""Of them, one for each way in which weights are cut."""
MORE = [
    *(Case(2, piped(schedule), 1) for schedule in SCHEDULES[1:]),
    Case(4, {"cp_size": 2, "ep_size": 4}),
    Case(4, {"dp_replicate": 4, "ep_size": 4}),
    Case(2, {"ep_size": 2, "recompute": "block"}),
    Case(4, {"ep_size": 2, "recompute": "selective", "reshard": False}),
]


def check(adapted: Adapted, case: Case, one: tuple[Found, Seen] | None = None) -> list[Seen]:
    subject = case.of(adapted.subject)
    found, saw = one or look_adapted(replace(adapted, subject=subject))
    assert found.parts["balance_loss"] > 0.1, "the balance loss must count"
    everywhere = run_workers(case.world, look_adapted, replace(adapted, subject=subject), case.parallel)
    for here, here_saw in everywhere:
        assert here.parts.keys() == found.parts.keys()
        for name, value in found.parts.items():
            rounding = DIFFERENCE if name in DIFFERENCES else 0.0
            assert here.parts[name] == pytest.approx(value, rel=BOUND, abs=rounding), name
        assert here.norm == pytest.approx(found.norm, rel=BOUND)
        assert here.loads == found.loads
        np.testing.assert_allclose(here.scores, found.scores, rtol=1e-4, atol=1e-4)
        assert here_saw.before == here_saw.after == saw.before
    assert_small(errors([here.gradients for here, _ in everywhere], found.gradients))
    return [here_saw for _, here_saw in everywhere]


@SLOW
@pytest.mark.parametrize(
    "case",
    [
        Case(2, piped("zbv"), 1, "dpo"),
        Case(4, {"ep_size": 2, "recompute": "block"}, 1, "kto"),
        Case(4, piped("1f1b", cp_size=2), objective="dpo"),
    ],
    ids=str,
)
def test_preferences_are_relative_to_the_model_without_adapters(case: Case):
    check(PREFERRING, case)


@pytest.fixture(scope="module")
def found_alone() -> tuple[Found, Seen]:
    return look_adapted(RICH)


@pytest.fixture(scope="module")
def found_alone_on_plain() -> tuple[Found, Seen]:
    return look_adapted(PLAIN)


@pytest.fixture(scope="module")
def learnt_alone() -> tuple[Course, Seen]:
    return learn_adapted(RICH)


@SLOW
@pytest.mark.parametrize("case", [*AXES, *MORE], ids=str)
def test_loss_norm_and_every_gradient_are_those_of_one_device(found_alone: tuple[Found, Seen], case: Case):
    check(RICH, case, found_alone)


@SLOW
@pytest.mark.parametrize("case", FEWER, ids=str)
def test_so_they_are_on_plain_weights(found_alone_on_plain: tuple[Found, Seen], case: Case):
    check(PLAIN, case, found_alone_on_plain)


@SLOW
@pytest.mark.parametrize(
    ("changes", "case"),
    [
        ({"lora": {"dora": True}, "targets": MAPS}, Case(2, {})),
        ({"lora": {"dora": True}, "targets": MAPS}, Case(4, piped("1f1b", ep_size=2), 1)),
        ({"lora": {"shared_a": True}}, Case(2, {"ep_size": 2})),
        ({"lora": {"shared_a": True, "rslora": True}}, Case(4, {}, 1)),
        ({"lora": {"merge_into": "released"}, "targets": ("attn", "ffn.experts")}, Case(2, {"ep_size": 2})),
        ({"targets": ("layers.3.attn",)}, Case(2, piped("zbv"), 1)),
        ({"targets": ("layers.0.attn.wq_b",)}, Case(2, piped("dualpipev"), 1)),
    ],
    ids=str,
)
def test_so_they_are_with_other_adapters(changes: dict[str, Any], case: Case):
    """A stage without any adapter included."""
    check(replace(FEW, **changes), case)


@SLOW
@pytest.mark.parametrize("quantized", [True, False])
def test_a_bf16_base_gives_the_same_where_rows_stay_whole(quantized: bool):
    """Elsewhere sums in another order round to other bf16 activations."""
    check(replace(FEW, subject=replace(FEW.subject, dtype=torch.bfloat16), quantized=quantized), Case(2, {}))


@SLOW
def test_without_mtp_the_frozen_block_waits():
    loss = LOSS.model_copy(update={"mtp_weight": 0.0})
    check(replace(FEW, subject=replace(FEW.subject, loss=loss), targets=MAPS[:-1]), Case(2, {"ep_size": 2}))


@SLOW
@pytest.mark.parametrize("case", FEWER, ids=str)
def test_steps_stay_equal(learnt_alone: tuple[Course, Seen], case: Case):
    one, saw = learnt_alone
    adapted = replace(RICH, subject=case.of(RICH.subject))
    everywhere = run_workers(case.world, learn_adapted, adapted, case.parallel)
    for course, here in everywhere:
        assert course.losses == pytest.approx(one.losses, rel=BOUND)
        assert course.norms == pytest.approx(one.norms, rel=10 * BOUND)
        assert here.before == here.after == saw.before
    assert_small(errors([course.weights for course, _ in everywhere], one.weights))


@SLOW
def test_ten_steps_lower_the_loss():
    """What stays equal is learning."""
    course, seen = learn_adapted(RICH, steps=10)
    assert course.losses[-1] < 0.95 * course.losses[0]
    assert seen.before == seen.after


@SLOW
def test_frozen_weights_are_divided_as_the_bytes_they_are():
    """Each process holds its share, of the dtypes of the whole, and little more: buffers, and what does not divide."""
    whole = {name: piece.tensor for name, piece in made(FEW).base_shards().items()}
    total = sum(x.nbytes for x in whole.values())
    for world, parallel in ((2, {}), (2, {"cp_size": 2}), (4, {"ep_size": 2})):
        for held in run_workers(world, bytes_held, FEW, parallel):
            assert {name: str(whole[name].dtype) for name in held} == {name: kind for name, (kind, _) in held.items()}
            assert sum(size for _, size in held.values()) < total / world + 30_000


@SLOW
@pytest.mark.parametrize(
    ("world", "parallel"), [(2, {}), (4, {"ep_size": 2}), (4, piped("1f1b", ep_size=2)), (3, {"dp_shard": 3})], ids=str
)
def test_packed_weights_load_and_start_in_the_pieces_that_are_here(
    tmp_path: Path, world: int, parallel: dict[str, Any]
):
    """Each process reads its own experts and rows, of weights and scales alike; three cut most things unevenly."""
    experts = 6 if world == 3 else 8
    subject = replace(RICH.subject, config=RICH.subject.config.replace(n_routed_experts=experts))
    whole_model(subject).save_pretrained(tmp_path / "released", format="released")
    adapted = replace(RICH, subject=subject)
    for read, held in run_workers(world, read_base, tmp_path / "released", adapted, parallel):
        assert held / 2 < read < held + 1000


@SLOW
@pytest.mark.parametrize(
    ("changes", "case"),
    [
        ({}, Case(4, piped("1f1b", ep_size=2))),
        ({"lora": {"shared_a": True}}, Case(2, {"ep_size": 2})),
        ({"lora": {"dora": True}, "targets": MAPS}, Case(2, {})),
    ],
    ids=str,
)
def test_adapter_files_are_the_same_from_and_into_any_layout(tmp_path: Path, changes: dict[str, Any], case: Case):
    adapted = replace(RICH, **changes)
    with pytest.raises(ValueError, match="is not an adapter"):
        write_and_read(tmp_path, adapted)
    (tmp_path / "here").rename(tmp_path / "one")
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert len(names) == 5
    run_workers(case.world, write_and_read, tmp_path, adapted, case.parallel)
    assert {file.name for file in (tmp_path / "here").iterdir()} == names
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
