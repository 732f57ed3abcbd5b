"""docs/grpo.md and the recipes for rewards: their commands run, at fewer steps, and the example sums are right."""

import json
import re
from pathlib import Path

import pytest

from seektune.recipe.load import load_recipe
from tests.places import RECIPES, ROOT
from tests.run_cli import seektune

from .guides import commands, printed
from .test_parallel import header

PAGE = "docs/grpo.md"
FEW = ("--steps=1", "--schedule.warmup_steps=0", "--batch.global_size=8", "--batch.micro_size=8", "--evaluate.limit=2")


def test_the_example_names_its_recipe(example_rows: tuple[Path, str]) -> None:
    said = example_rows[1]
    assert "seektune init deepseek_v4_tiny_sums recipes" in said
    assert "The recipe deepseek_v4_tiny_grpo continues from such a model" in said


def test_the_tables_of_differences_have_the_numbers_of_their_file() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    found = json.loads((ROOT / "bench/logprob_mismatch.json").read_text(encoding="utf-8"))
    cases = {name: case for name, case in found.items() if isinstance(case, dict)}
    assert len(cases) == 18
    for name, case in cases.items():
        where, _, invariant = name.partition(", batch-invariant")
        where = where.removeprefix("a step on ").replace("float32", "fp32").replace("bfloat16", "bf16")
        cells = [*where.split(" and "), "yes" if name.endswith("invariant") else "no"]
        mean, largest, share, logprob = (case[f"mismatch_{key}"] for key in ("mean", "max", "share", "logprob_max"))
        numbers = (f"{mean:.3g}", f"{largest:.3g}", f"{100 * share:.3g} %", f"{logprob:.3g}")
        assert "| " + " | ".join((*cells, *numbers)) + " |" in page
        assert not invariant or case["mismatch_logprob_max"] == 0 or "released and plain" in name


def test_the_demo_gains_thirty_points_that_shuffled_rewards_do_not_give() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    found = json.loads((ROOT / "bench/grpo_demo.json").read_text(encoding="utf-8"))
    rewarded, shuffled = found["rewards"], found["shuffled"]
    recipe = load_recipe(RECIPES / "deepseek_v4_tiny_grpo.yaml")
    assert recipe.evaluate.every is not None
    measured = [*range(0, recipe.steps + 1, recipe.evaluate.every)]
    assert [point["step"] for point in rewarded] == [point["step"] for point in shuffled] == measured
    for pair in zip(rewarded, shuffled, strict=True):
        cells = [f"{each['reward']:.3f} ({each['reward_low']:.3f} to {each['reward_high']:.3f})" for each in pair]
        assert "| " + " | ".join((str(pair[0]["step"]), *cells)) + " |" in page
    first, *_, last = rewarded
    assert 0.4 < first["reward"] < 0.6, "half of its answers are right"
    assert last["reward"] - first["reward"] >= 0.3
    assert last["reward_low"] > first["reward_high"]
    assert shuffled[0]["reward"] == first["reward"]
    assert max(point["reward"] for point in shuffled[1:]) < first["reward_low"]


@pytest.mark.slow
def test_the_commands_of_the_page_run(place: Path) -> None:
    said = []
    for command in [each for each in commands(PAGE) if not each.hardware and each.words[0] == "seektune"][1:]:
        said.append(printed(command, place, FEW))
    *teaching, training, plan = said
    assert ["validation loss" in each for each in teaching] == [True, True]
    assert re.search(r"step 1/1 · loss \S+ · reward \S+ · mismatch mean \S+ · mismatch max", training)
    assert "fits" in plan
    assert "Rewards" in (place / "runs/grpo/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_flash_recipe_shrinks_to_one_process_as_it_says(place: Path) -> None:
    path = RECIPES / "deepseek_v4_flash_grpo_lora.yaml"
    (words,) = [words for words in header(path) if "--model.preset=tiny-0731" in words]
    words = ["--data.path=sums/train.jsonl" if word == "--data.path=FILE" else word for word in words[1:]]
    words = [word for word in words if not word.startswith(("--steps", "--nproc-per-node"))]
    few = (
        "--steps=1",
        "--schedule.warmup_steps=0",
        "--objective.max_new_tokens=9",
        "--objective.overlong=keep",
        "--objective.group_size=2",
        "--objective.steps_per_rollout=1",
        "--batch.global_size=2",
        "--evaluate.limit=1",
    )
    done = seektune("train", *words, *few, "--run_dir=runs/flash", cwd=place, XDG_CACHE_HOME=str(place / "cache"))
    assert done.returncode == 0, done.stderr
    assert "step 1/1" in done.stdout


def test_half_of_the_taught_sums_are_wrong_and_others_are_right(place: Path) -> None:
    rows = {
        name: [json.loads(line) for line in (place / "sums" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation", "taught")
    }
    assert [len(rows[name]) for name in ("train", "validation", "taught")] == [2250, 250, 2250]
    held_out = {row["prompt"] for row in rows["validation"]}
    assert not held_out & {row["prompt"] for row in rows["train"]}
    assert [row["prompt"] for row in rows["taught"]] == [row["prompt"] for row in rows["train"]]

    def right(row: dict[str, str]) -> bool:
        a, b = row["prompt"].replace(" ", "").removesuffix("=").split("+")
        return int(a) + int(b) == int(row["completion"].replace(" ", ""))

    assert all(map(right, rows["train"] + rows["validation"]))
    assert sum(map(right, rows["taught"])) == 1125
