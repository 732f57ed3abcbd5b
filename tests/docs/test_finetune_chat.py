"""docs/finetune-chat.md and the recipes for conversations: their commands run, at fewer steps, and do what they say."""

import json
import re
from pathlib import Path

import pytest

from tests.places import RECIPES
from tests.run_cli import seektune

from .guides import commands, printed
from .test_parallel import header

PAGE = "docs/finetune-chat.md"
FEW = ("--steps=2", "--schedule.warmup_steps=1", "--batch.global_size=4", "--batch.micro_size=2", "--evaluate.limit=2")


@pytest.mark.slow
def test_the_commands_of_the_page_run(place: Path) -> None:
    said = []
    for command in (each for each in commands(PAGE)[1:] if not each.hardware):
        said.append(printed(command, place, FEW))
    preview, stats, training, _, plan = said
    assert "<｜Assistant｜>" in preview
    assert "486 rows" in stats
    assert "exact match" in training
    assert "fits" in plan
    samples = [json.loads(line) for line in (place / "runs/chat/samples.jsonl").read_text().splitlines()]
    assert "What is the capital of Japan?" in json.dumps(samples)
    assert "What is the capital of Japan?" in (place / "runs/chat/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flash_chat", "flash_chat_lora"])
def test_a_flash_recipe_shrinks_to_one_process_as_it_says(place: Path, name: str) -> None:
    (words,) = [words for words in header(RECIPES / f"deepseek_v4_{name}.yaml") if "--model.preset=tiny-0731" in words]
    words = ["--data.path=conversations/train.jsonl" if word == "--data.path=FILE" else word for word in words[1:]]
    words = [word for word in words if not word.startswith(("--steps", "--nproc-per-node"))]
    few = ("--steps=1", "--batch.global_size=1", "--evaluate.tasks=[validation]", "--evaluate.limit=2")
    done = seektune("train", *words, *few, f"--run_dir=runs/{name}", cwd=place, XDG_CACHE_HOME=str(place / "cache"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"step 1/1 · loss \d", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flash_chat", "flash_chat_lora"])
def test_rows_can_be_looked_at_as_the_recipe_says(place: Path, name: str) -> None:
    text = (RECIPES / f"deepseek_v4_{name}.yaml").read_text(encoding="utf-8")
    found = re.findall(r"^# +seektune (data .*)", text, re.MULTILINE)
    assert len(found) == 2
    for line in found:
        words = line.replace("FILE", "conversations/train.jsonl").split()
        done = seektune(*words, cwd=place, XDG_CACHE_HOME=str(place / "cache"))
        assert (done.returncode, done.stderr) == (0, ""), words
