"""The commands of docs/lora.md and of the tiny LoRA recipe run, on made rows and with few steps."""

import re
import shlex
from pathlib import Path

import pytest

from seektune.data.synthetic import write_hellaswag

from .workflows.door import ROOT, seektune

PAGE = ROOT / "docs" / "lora.md"
RECIPE = ROOT / "examples" / "llm_finetune" / "deepseek_v4" / "deepseek_v4_tiny_lora.yaml"


def commands_of_page() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


def commands_of_recipe() -> list[list[str]]:
    lines = [line.removeprefix("#").strip() for line in RECIPE.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("seektune ")][1:]


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path) -> None:
    """The page's run first, then the recipe's own into another folder, whose base is the page's BASE."""
    rows = write_hellaswag(tmp_path / "rows", 40, 6)
    small = [f"--data.path={rows}", "--steps=2", "--batch.global_size=4", "--batch.micro_size=4", "--evaluate.limit=2"]
    train, merge = commands_of_page()
    prepared = [[word.replace("runs/adapted", "runs/second") for word in words] for words in commands_of_recipe()]
    assert [words[1] for words in (train, *prepared, merge)] == ["train", "train", "convert", "train", "merge"]
    for words in (train, *prepared, merge):
        words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
        words = ["runs/base/released" if word == "BASE" else word for word in words]
        answer = seektune(*words[1:], *(small if words[1] == "train" else []), cwd=tmp_path)
        assert answer.returncode == 0, (words, answer.stderr)
    assert "is kept" in answer.stdout
    assert (tmp_path / "merged" / "config.json").exists()
