"""docs/preference-tuning.md and the recipes for preferences: their commands run, at fewer steps, and do as they say."""

import json
import re
from pathlib import Path

import pytest

from tests.places import RECIPES
from tests.run_cli import seektune

from .guides import commands, printed
from .test_parallel import header

PAGE = "docs/preference-tuning.md"
FEW = ("--steps=2", "--schedule.warmup_steps=1", "--batch.global_size=4", "--batch.micro_size=2", "--evaluate.limit=2")
LEAST = ("--evaluate.tasks=[]", "--data.limit=8")
"""The reference's log-probabilities of all rows take longer than the steps."""


def test_the_example_names_its_recipe(example_rows: tuple[Path, str]) -> None:
    assert "seektune init deepseek_v4_tiny_dpo recipes" in example_rows[1]


@pytest.mark.slow
def test_the_commands_of_the_page_run(place: Path) -> None:
    said = []
    for command in (each for each in commands(PAGE)[1:] if not each.hardware):
        said.append(printed(command, place, (*FEW, *LEAST)))
    preview, stats, training, other, plan = said
    assert preview.count("document ") == 2
    assert "chosen" in preview
    assert "rejected" in preview
    assert "324 rows" in stats
    assert re.search(r"validation loss .*, reward_margin -?\d.*, reward_accuracy \d", training)
    assert "reference: log-probabilities of" in training
    assert "reference: log-probabilities of" not in other
    assert "fits" in plan
    assert "Preferences, held out" in (place / "runs/dpo/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_flash_recipe_shrinks_to_one_process_as_it_says(place: Path) -> None:
    path = RECIPES / "deepseek_v4_flash_dpo_lora.yaml"
    (words,) = [words for words in header(path) if "--model.preset=tiny-0731" in words]
    words = ["--data.path=preferences/train.jsonl" if word == "--data.path=FILE" else word for word in words[1:]]
    words = [word for word in words if not word.startswith(("--steps", "--nproc-per-node"))]
    few = ("--steps=1", "--batch.global_size=1", "--evaluate.tasks=[]", "--evaluate.limit=2")
    done = seektune("train", *words, *few, "--run_dir=runs/flash", cwd=place, XDG_CACHE_HOME=str(place / "cache"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"step 1/1 · loss 0\.693\d", done.stdout), "the adapters begin at zero"
    assert not (place / "runs/flash/reference").exists()


@pytest.mark.slow
def test_rows_can_be_looked_at_as_the_recipe_says(place: Path) -> None:
    text = (RECIPES / "deepseek_v4_flash_dpo_lora.yaml").read_text(encoding="utf-8")
    found = re.findall(r"^# +seektune (data .*)", text, re.MULTILINE)
    assert len(found) == 2
    for line in found:
        words = line.replace("FILE", "preferences/train.jsonl").split()
        done = seektune(*words, cwd=place, XDG_CACHE_HOME=str(place / "cache"))
        assert (done.returncode, done.stderr) == (0, ""), words


def test_the_example_preferences_are_right_and_held_out_properly(place: Path) -> None:
    rows = {
        name: [json.loads(line) for line in (place / "preferences" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    }
    assert (len(rows["train"]), len(rows["validation"])) == (324, 36)
    assert not [row for row in rows["validation"] if row in rows["train"]]
    for row in (*rows["train"], *rows["validation"]):
        question, chosen, rejected = (row[name][0]["content"] for name in ("prompt", "chosen", "rejected"))
        assert chosen != rejected
        if found := re.search(r"(\d+) plus (\d+)", question):
            total = str(int(found[1]) + int(found[2]))
            assert re.findall(r"\d+", chosen)[-1] == total
            assert rejected == f"{total}." or re.findall(r"\d+", rejected)[-1] != total
