"""Any mesh of 2 to 8 processes finds what one device finds, and learns what it learns."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from seektune.train.config import LossConfig

from ..conftest import DSPARK
from .mesh_law import (
    SHALLOW,
    SHORT,
    Course,
    Found,
    Subject,
    alone,
    draft,
    draft_spread,
    errors,
    learn,
    learn_spread,
    learn_twice,
    look,
    look_alone,
    look_spread,
)
from .workers import run_workers

SLOW = pytest.mark.slow
BOUND = 1e-5
SIMPLE = {"schedule": "1f1b"}
DIFFERENCES = dict.fromkeys(("chosen_reward", "rejected_reward", "reward_margin", "kl"), 4 * BOUND)
"""Parts that are differences of log-probabilities, which are 4 and more for each token: their rounding is relative to
those."""
SCHEDULES = ("1f1b", "interleaved1f1b", "zbv", "dualpipev")


class Case(NamedTuple):
    """A layout, and how many rows go through it at a time."""

    world: int
    parallel: dict[str, Any]
    micro_size: int = 2
    objective: str = "cross_entropy"

    def of(self, subject: Subject) -> Subject:
        return replace(subject, micro_size=self.micro_size, objective=self.objective)

    def __str__(self) -> str:
        values = {**self.parallel, **self.parallel.get("pipeline", {})}
        layout = "-".join(f"{key}:{value}" for key, value in values.items() if key != "pipeline") or f"dp:{self.world}"
        return layout if self.objective == "cross_entropy" else f"{layout}-{self.objective}"


def piped(schedule: str, **sizes: int) -> dict[str, Any]:
    return {"pp_size": 2, **sizes, "pipeline": {"schedule": schedule}}


AXES = [
    Case(2, {}),
    Case(2, {"dp_replicate": 2}),
    Case(2, {"ep_size": 2}),
    Case(2, {"cp_size": 2}),
    *(Case(2, piped(schedule), 1) for schedule in SCHEDULES),
]
COMBINATIONS = [
    *(Case(4, piped(schedule, ep_size=2), 1) for schedule in SCHEDULES),
    Case(4, {"ep_size": 2}),
    Case(4, {"cp_size": 2, "ep_size": 2}),
    Case(4, piped("1f1b", cp_size=2)),
]
SINGLE = [*AXES[:5], AXES[6]]
"""Each axis alone; the other schedules are looked at in combinations."""
LEARNT = [*SINGLE, COMBINATIONS[0], *COMBINATIONS[3:]]
"""To an optimizer a schedule is no more than the layers of a stage."""
LOOKED_AT = [
    *SINGLE[:3],
    *(case._replace(objective="every_kind") for case in SINGLE[3:]),
    COMBINATIONS[0],
    *(case._replace(objective="every_kind") for case in COMBINATIONS[1:]),
    Case(2, {"ep_size": 2, "recompute": "block"}, objective="every_kind"),
    Case(2, {"ep_size": 2, "recompute": "selective", "reshard": False}),
    Case(2, {"ep_size": 2, "cpu_offload": True}),
    Case(2, {"dp_replicate": 2, "ep_size": 2}, objective="every_kind"),
    Case(4, {"dp_replicate": 2}),
    Case(4, {"dp_replicate": 2, "ep_size": 4}),
    Case(4, {"cp_size": 4}, objective="dpo"),
    Case(4, {"cp_size": 2, "ep_size": 4}, objective="z_loss"),
    Case(4, {"cp_size": 2, "ep_size": 4}, objective="gspo"),
    Case(4, {"pp_size": 4}, objective="dpo"),
    Case(4, {"pp_size": 2, "pipeline": {"schedule": "zbv", "microbatch": 1}, "recompute": "block"}, 1),
    Case(8, {"pp_size": 2, "ep_size": 2}, 1, objective="z_loss"),
    Case(8, {"pp_size": 2, "cp_size": 2, "ep_size": 2}, objective="dpo"),
]


RICH = Subject(weighted=True, config=SHALLOW)
"""Every mechanism, in rows of 1 to 600 tokens whose tokens have weights."""
DEEP = Subject(weighted=True)
"""With more layers than the largest layouts have stages."""
LEARNER = Subject(SHORT, config=SHALLOW, seed=4)
"""With four stages, the MTP block has the last one for itself."""
FEW = Subject(((131,), (1, 3, 9, -5, 30), (2,), (64,)), seed=3)
ROUNDED = replace(FEW, config=SHALLOW.replace(moe_intermediate_size=32), qat="released")
"""Groups of 32 columns fit into its experts; few tokens, so that no rounding hangs on the order of a sum."""
DISTILLED = replace(FEW, teacher=True, weighted=True)
TAUGHT = [
    Case(2, {"cp_size": 2, "ep_size": 2}, objective="distill"),
    Case(4, piped("1f1b", ep_size=2), 1, objective="distill"),
    Case(4, piped("1f1b", ep_size=2), 1, objective="opd"),
    Case(4, {"cp_size": 2, "ep_size": 2}, objective="files"),
    Case(2, piped("1f1b"), 1, objective="files"),
]
WARMUP = replace(FEW, config=SHALLOW, indexers="warmup", loss=LossConfig(mtp_weight=0))
SPARSE = replace(FEW, config=SHALLOW, indexers="sparse")
INDEXERS = [
    (WARMUP, Case(2, {"cp_size": 2, "ep_size": 2, "recompute": "block"})),
    (WARMUP, Case(2, piped("dualpipev"), 1)),
    (SPARSE, Case(2, {"cp_size": 2, "recompute": "block"})),
    (SPARSE, Case(4, piped("zbv", ep_size=2), 1)),
]
QAT = [
    Case(2, {"recompute": "block"}),
    Case(4, {"cp_size": 2, "ep_size": 2}),
    Case(4, piped("1f1b", ep_size=2), 1),
]
DRAFTER = Subject(
    ((131,), (1, 3, 9, -5, 30), (1,), (64,)), micro_size=1, config=SHALLOW.replace(**DSPARK), seed=3, anchors=40
)


def rich(case: Case) -> Subject:
    """What is looked at on a layout."""
    return case.of(DEEP if case.world == 8 or case.parallel.get("pp_size") == 4 else RICH)


@pytest.fixture(scope="module")
def rounded_alone() -> Found:
    return look(alone(ROUNDED), ROUNDED)


@pytest.fixture(scope="module")
def distilled_alone() -> dict[str, Found]:
    """By objective."""
    subjects = {name: replace(DISTILLED, objective=name) for name in ("distill", "files", "opd")}
    return {name: look(alone(subject), subject) for name, subject in subjects.items()}


@pytest.fixture(scope="module")
def drafted_alone() -> tuple[Found, Course]:
    return draft(alone(DRAFTER), DRAFTER)


@pytest.fixture(scope="module")
def learnt_alone() -> dict[str, Course]:
    """By optimizer."""
    return learn_twice(alone(LEARNER), LEARNER)


@SLOW
@pytest.mark.parametrize("case", LOOKED_AT, ids=str)
def test_parts_norm_loads_and_every_gradient_are_those_of_one_device(case: Case):
    one = look_alone(replace(rich(case), micro_size=2))
    assert one.parts["balance_loss"] > 0.1, "the balance loss must count"
    same_findings(run_workers(case.world, look_spread, case.parallel, rich(case)), one)


@pytest.mark.parametrize(
    "case", [Case(2, {"cp_size": 2, "ep_size": 2}), pytest.param(Case(2, piped("zbv"), 1), marks=SLOW)], ids=str
)
def test_so_it_is_with_few_rows(case: Case):
    everywhere = run_workers(case.world, look_spread, case.parallel, case.of(FEW))
    same_findings(everywhere, look_alone(FEW))


def same_findings(everywhere: list[Found], one: Found) -> None:
    for found in everywhere:
        assert found.parts.keys() == one.parts.keys()
        for name, value in one.parts.items():
            assert found.parts[name] == pytest.approx(value, rel=BOUND, abs=DIFFERENCES.get(name, 0.0)), name
        assert found.norm == pytest.approx(one.norm, rel=BOUND)
        assert found.loads == one.loads
        assert found.recall == one.recall
        np.testing.assert_allclose(found.scores, one.scores, rtol=1e-4, atol=1e-4)
    apart = errors([found.gradients for found in everywhere], one.gradients)
    assert_small(apart)


def assert_small(apart: dict[str, float]) -> None:
    assert max(apart.values()) <= BOUND, sorted(apart.items(), key=lambda item: -item[1])[:5]


@SLOW
@pytest.mark.parametrize("case", LEARNT, ids=str)
def test_steps_stay_equal(learnt_alone: dict[str, Course], case: Case):
    """Those of AdamW and those of Muon, to which the schedule of a pipeline does not matter."""
    muon = case.parallel.get("pipeline", SIMPLE) == SIMPLE
    everywhere = run_workers(case.world, learn_spread, case.parallel, case.of(LEARNER), muon)
    assert everywhere[0].keys() == {"adamw", *["muon"] * muon}
    for name in everywhere[0]:
        one = learnt_alone[name]
        courses = [found[name] for found in everywhere]
        for course in courses:
            assert course.losses == pytest.approx(one.losses, rel=BOUND)
            assert course.norms == pytest.approx(one.norms, rel=10 * BOUND)
        assert_small(errors([course.weights for course in courses], one.weights))


@SLOW
@pytest.mark.parametrize("case", QAT, ids=str)
def test_quantization_aware_loss_and_gradients_are_those_of_one_device(rounded_alone: Found, case: Case):
    """Blocks of scales lie across shards: each matrix of the toy model is one block, or a row of it one group."""
    same_findings(run_workers(case.world, look_spread, case.parallel, case.of(ROUNDED)), rounded_alone)


@SLOW
@pytest.mark.parametrize(
    ("subject", "case"), INDEXERS, ids=lambda each: str(each) if isinstance(each, Case) else each.indexers
)
def test_indexers_learn_and_find_what_they_do_on_one_device(subject: Subject, case: Case):
    one = look(alone(subject), subject)
    assert one.parts["indexer_loss"] > 0.1
    assert any(hits for hits, _ in one.recall.values())
    learnt = {name for name in one.gradients if ".indexer." in name}
    assert len(learnt) == 12
    assert (one.gradients.keys() == learnt) is (subject.indexers == "warmup")
    same_findings(run_workers(case.world, look_spread, case.parallel, case.of(subject)), one)


@SLOW
@pytest.mark.parametrize("case", TAUGHT, ids=str)
def test_distillation_has_the_loss_and_gradients_of_one_device(distilled_alone: dict[str, Found], case: Case):
    """The teachers, of other widths and depths, have the layout of the student."""
    everywhere = run_workers(case.world, look_spread, case.parallel, case.of(DISTILLED))
    same_findings(everywhere, distilled_alone[case.objective])


@SLOW
@pytest.mark.parametrize("case", [Case(2, {"dp_replicate": 2, "ep_size": 2}, 1), Case(4, {"ep_size": 2}, 1)], ids=str)
def test_drafters_learn_what_they_learn_on_one_device(drafted_alone: tuple[Found, Course], case: Case):
    """Of the rows of a step, some have more anchors than a pass takes, and one has none."""
    found, course = drafted_alone
    everywhere = run_workers(case.world, draft_spread, case.parallel, DRAFTER)
    assert found.parts["draft_distance"] > 0.1
    assert found.gradients
    assert all(name.startswith("mtp.") for name in found.gradients)
    same_findings([each for each, _ in everywhere], found)
    for each in everywhere:
        assert each[1].losses == pytest.approx(course.losses, rel=BOUND)
    assert_small(errors([each.weights for _, each in everywhere], course.weights))


@SLOW
def test_ten_steps_lower_the_loss():
    """What stays equal is learning."""
    course = learn(alone(LEARNER), LEARNER, 10)
    assert course.losses[-1] < 0.8 * course.losses[0]
