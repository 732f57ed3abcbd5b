"""The verbs of planning: what they print, their exit codes, and what a launch asks them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from seektune.model.config import DeepseekV4Config
from seektune.planner.hardware import known_gpu
from seektune.planner.report import FROZEN_MODELS
from seektune.workflows import preflight
from seektune.workflows.plan import PlanOptions, best_layout, plan, refuse_misfit, take_plan
from seektune.workflows.preflight import choose_layout, cluster_here, settle
from seektune.workflows.validate import BAD, GOOD, UNKNOWN, check
from tests.places import FLASH, FLASH_LORA, RECIPES, TINY

from ..planner.jobs import layout, recipe

SMALL = ("model.dtype=bf16", "batch.global_size=16", "batch.length=200")


@pytest.mark.slow
def test_a_plan_says_by_how_much_and_on_which_rank(capsys: pytest.CaptureFixture[str]) -> None:
    asked = recipe(FLASH, "parallel.ep_size=16")
    assert not plan(asked, known_gpu("h100-80gb", 64), PlanOptions())
    said = capsys.readouterr().out
    assert "does not fit: rank" in said
    assert "GB too much" in said
    assert plan(asked, known_gpu("h200-141gb", 64), PlanOptions())
    assert "GB to spare" in capsys.readouterr().out


def test_json_holds_bytes_of_every_rank(capsys: pytest.CaptureFixture[str]) -> None:
    plan(recipe(TINY, *SMALL, "parallel.pp_size=2"), known_gpu("h100-80gb", 4), PlanOptions(as_json=True))
    answer = json.loads(capsys.readouterr().out)
    assert [each["rank"] for each in answer["ranks"]] == [0, 1, 2, 3]
    assert answer["fits"] is True
    assert answer["time"]["tokens"] == 16 * 200
    assert answer["budget"] is None


def test_a_plan_says_that_it_leaves_out_the_teacher() -> None:
    distilled = ("objective.name=distill", "objective.teacher=runs/larger/model")
    report, _ = take_plan(recipe(TINY, *SMALL, *distilled), known_gpu("h100-80gb", 1), PlanOptions())
    assert "without other checkpoints" in report.verdict()[1]
    assert FROZEN_MODELS in report.assumptions()
    plain, _ = take_plan(recipe(TINY, *SMALL), known_gpu("h100-80gb", 1), PlanOptions())
    assert "without other checkpoints" not in plain.verdict()[1]
    assert FROZEN_MODELS not in plain.assumptions()


@pytest.mark.slow
def test_a_plan_of_rewards_says_that_rollouts_are_left_out() -> None:
    node = known_gpu("h100-80gb", 8)
    for path, included in ((FLASH_LORA, False), (RECIPES / "deepseek_v4_flash_grpo_lora.yaml", True)):
        report, _ = take_plan(recipe(path), node, PlanOptions())
        assert any("does not include its rollout" in line for line in report.assumptions()) is included


def test_an_unknown_architecture_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"--model\.preset=flash"):
        take_plan(recipe(FLASH, "model.preset=null"), known_gpu("h100-80gb", 128), PlanOptions())


@pytest.mark.slow
def test_a_search_says_the_words_of_the_fastest(capsys: pytest.CaptureFixture[str]) -> None:
    plan(recipe(TINY, *SMALL), known_gpu("h100-80gb", 2), PlanOptions(search=True))
    found = re.search(r"^the fastest: (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    words = [word.removeprefix("--") for word in found[1].split()]
    best = best_layout(recipe(TINY, *SMALL), known_gpu("h100-80gb", 2)).layout
    assert str(layout(TINY, 2, *SMALL, *words)) == str(best)


@pytest.mark.slow
def test_what_training_refuses_is_not_planned() -> None:
    streamed, node = recipe(FLASH_LORA, "model.offload=stream"), known_gpu("h100-80gb", 8)
    for ask in (lambda: take_plan(streamed, node, PlanOptions()), lambda: settle(streamed, node)):
        with pytest.raises(ValueError, match="offload stream is for one process, not for 8"):
            ask()


@pytest.mark.slow
def test_a_job_that_cannot_fit_is_refused_with_the_nearest() -> None:
    small = replace(known_gpu("h100-80gb", 4), memory=2_600_000_000)
    asked = recipe(TINY, "model.dtype=bf16", "batch.global_size=64", "batch.micro_size=16", "batch.length=2000")
    config = DeepseekV4Config.preset("tiny")
    with pytest.raises(ValueError, match=r"this fits: .*--parallel\.recompute="):
        refuse_misfit(asked, config, small)
    refuse_misfit(asked, config, known_gpu("h100-80gb", 4))


@pytest.mark.slow
def test_auto_is_short_for_a_layout_and_becomes_words(capsys: pytest.CaptureFixture[str]) -> None:
    said = (*SMALL, "parallel.layout=auto", "parallel.dp_shard=2", "parallel.dp_replicate=2")
    asked = recipe(TINY, *said)
    words = choose_layout(asked, cluster_here(4, 1))
    assert words[0] == "--parallel.layout=given"
    assert "parallel: auto takes" in capsys.readouterr().out
    chosen = recipe(TINY, *said, *(word.removeprefix("--") for word in words))
    assert (chosen.parallel.layout, chosen.parallel.dp_shard) == ("given", None)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("seektune.data.datasets.hellaswag_sources.cached", unreachable)


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_a_plan_and_a_validation_of_auto_are_of_the_layout_that_it_takes(tmp_path: Path) -> None:
    node = replace(known_gpu("h100-80gb", 4), memory=2_600_000_000)
    asked = recipe(TINY, "model.dtype=bf16", "batch.global_size=64", "batch.length=2000", "parallel.layout=auto")
    report, _ = take_plan(asked, node, PlanOptions())
    assert report.verdict()[0]
    best = str(best_layout(asked, node).layout)
    assert str(report.layout) == best
    found = {each.subject: each for each in check(asked, node, tmp_path)}
    assert found["plan"].state == GOOD
    assert best in found["plan"].said
    assert {each.subject: each.state for each in check(asked, None, tmp_path)}["plan"] == UNKNOWN


@pytest.mark.slow
def test_a_written_job_of_auto_has_no_sizes_left_of_before() -> None:
    asked = recipe(TINY, *SMALL, "parallel.layout=auto", "parallel.dp_shard=2", "parallel.dp_replicate=2")
    assert settle(asked, known_gpu("h100-80gb", 8))[-1] == "--parallel.dp_shard=null"


def test_a_recipe_may_say_parallel_auto(tmp_path: Path) -> None:
    file = tmp_path / "auto.yaml"
    text = TINY.read_text(encoding="utf-8")
    file.write_text(re.sub(r"\nparallel:\n(  .*\n)+", "\nparallel: auto\n", text))
    assert recipe(file).parallel.layout == "auto"
    asked = recipe(file, "parallel.recompute=block", "parallel.layout=given", "parallel.ep_size=2").parallel
    assert (asked.layout, asked.recompute, asked.ep_size) == ("given", "block", 2)
    assert recipe(TINY, "parallel=auto", "parallel.ep_size=2").parallel.layout == "auto"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA B200", "b200-192gb"),
        ("NVIDIA GB200", "gb200-192gb"),
        ("AMD Instinct MI300X", "mi300x-192gb"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-96gb"),
        ("NVIDIA GH200 480GB", "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "h100-80gb"),
    ],
)
def test_a_device_is_taken_for_its_kind(name: str, kind: str) -> None:
    assert preflight._kind(name) == kind


def test_a_launch_asks_the_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        preflight, "cluster_here", lambda processes, nodes: replace(known_gpu("h100-80gb", 1), memory=10**9)
    )
    large = recipe(TINY, "batch.length=8192", "batch.global_size=32", "batch.micro_size=32")
    with pytest.raises(ValueError, match="does not fit"):
        preflight.check_memory(large, DeepseekV4Config.preset("tiny"), 1, 1)
    preflight.check_memory(large, None, 1, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_validation_knows_wrong_from_unknown(tmp_path: Path) -> None:
    found = {each.subject: each for each in check(recipe(FLASH), None, tmp_path / "nothing")}
    assert {found[name].state for name in ("weights", "licence", "data")} == {UNKNOWN}
    assert found["tokenizer"].state == GOOD
    assert found["plan"].state == GOOD
    tight = {each.subject: each for each in check(recipe(FLASH), known_gpu("h100-80gb", 64), tmp_path)}
    assert tight["plan"].state == BAD
    DeepseekV4Config.preset("tiny").save(tmp_path)
    empty = recipe(TINY, f"model.weights={tmp_path}")
    assert {each.subject: each.state for each in check(empty, None, tmp_path)}["weights"] == BAD
