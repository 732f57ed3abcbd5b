"""docs/indexer.md and its recipe: plans say what they do, the recipe shrinks to one process, numbers were measured."""

import json
import re
from pathlib import Path

import pytest

from seektune.planner.hardware import known_gpu
from seektune.planner.report import make_report
from seektune.recipe.load import load_recipe
from tests.places import RECIPES, ROOT
from tests.planner.jobs import layout
from tests.run_cli import seektune

from .guides import commands, text_of
from .test_parallel import header

PAGE = "docs/indexer.md"
RECIPE = RECIPES / "deepseek_v4_flash_indexer_128k.yaml"


@pytest.mark.slow
def test_the_plans_are_what_page_and_recipe_say() -> None:
    said = text_of(PAGE), RECIPE.read_text(encoding="utf-8")
    found = []
    for command in commands(PAGE):
        if command.words[:2] == ("seektune", "plan"):
            gpus = int(command.words[command.words.index("--gpus") + 1])
            words = [word.removeprefix("--") for word in command.words if re.match(r"--\w+\.", word)]
            report = make_report(layout(RECIPE, gpus, *words), known_gpu("h200-141gb", gpus))
            assert report.verdict()[0]
            peak = report.peak_rank
            memory = f"{peak.lower['total'] / 1e9:.0f} to {peak.upper['total'] / 1e9:.0f} GB"
            assert all(memory in each for each in said), memory
            found.append(f"{report.time.seconds:.0f} s for a step")
    assert len(found) == 2
    assert all(each in said[0] for each in found), found


def test_the_warmup_of_the_page_is_valid() -> None:
    (words,) = [command.words for command in commands(PAGE) if command.words[:2] == ("seektune", "train")]
    # the weights are those of another page's run
    overrides = [word for word in words if word.startswith("--") and not word.startswith("--model.weights")]
    assert load_recipe(ROOT / words[2], overrides).train.indexer_stage == "warmup"


@pytest.mark.slow
def test_the_recipe_shrinks_to_one_process_as_it_says(tmp_path: Path) -> None:
    (words,) = [words for words in header(RECIPE) if "--model.preset=tiny" in words]
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": " ".join(str(n * k) for k in range(200))}) + "\n" for n in range(20, 40)),
        encoding="utf-8",
    )
    words = [str(ROOT / word) if word.startswith("examples/") else word for word in words[1:]]
    words = [word for word in words if not word.startswith(("--steps", "--nproc-per-node", "--data.path"))]
    few = ("--data.path=text.jsonl", "--data.validation=0.2", "--batch.global_size=1", "--steps=1")
    answer = seektune("train", *words, *few, "--run_dir=run", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["indexer_loss"] > 0
    assert 0 <= line["index_recall"] <= 1


def test_the_numbers_of_the_page_were_measured() -> None:
    found = json.loads((ROOT / "bench" / "indexer.json").read_text(encoding="utf-8"))
    text = text_of(PAGE)
    for each in found["stages"]:
        first, last = (f"{each[end]['recall']:.3f}" for end in ("first", "last"))
        losses = " | ".join(f"{each[end]['divergence']:.3f}" for end in ("first", "last"))
        held_out = " | ".join(f"{loss:.4f}" for loss in each["held_out"])
        row = f"| {each['what']} | {each['steps']} | {first} | {last} | {losses} | {held_out} |"
        assert row in text, row
    control = found["control"]
    losses = " | ".join(f"{loss:.4f}" for loss in control["held_out"])
    assert f"| {control['what']}, for comparison | {control['steps']} | | | | | {losses} |" in text
