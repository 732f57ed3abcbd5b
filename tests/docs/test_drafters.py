"""The commands that docs/drafters.md shows run, on a model with DSpark stages."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.workflows.inspect import inspect
from tests.conftest import DSPARK
from tests.places import ROOT
from tests.run_cli import seektune, without_room

from .guides import blocks


@pytest.mark.slow
def test_measuring_a_drafter(tmp_path: Path, toy_model) -> None:
    for seed, name in enumerate(("trained", "before")):
        toy_model(torch.float32, vocab_size=512, seed=seed, drafter=True, **DSPARK).save_pretrained(tmp_path / name)
    rows = [{"prompt": "The man"}, {"messages": [{"role": "user", "content": "2+2?"}]}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command, *_ = blocks("docs/drafters.md", "sh")
    answer = seektune(*shlex.split(command)[1:], cwd=tmp_path)
    assert (answer.returncode, without_room(answer.stderr)) == (0, "")
    assert "prompts:        2," in answer.stdout
    assert "tokens per step:" in answer.stdout
    assert "draft 5 accepted:" in answer.stdout
    assert "against before:" in answer.stdout


@pytest.mark.slow
def test_training_a_drafter(tmp_path: Path, toy_model) -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32}
    model = toy_model(torch.float32, vocab_size=512, drafter=True, **sizes, **DSPARK)
    model.save_pretrained(tmp_path / "tuned", format="released")
    write_hellaswag(tmp_path / "rows", 40, 6)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    _, block, _ = blocks("docs/drafters.md", "sh")
    train, convert = (shlex.split(line)[1:] for line in block.splitlines())
    small = ["--data.path=rows", "--train.drafter_answers=8", "--train.drafter_answer_tokens=8", "--evaluate.limit=4"]
    answer = seektune(*train, *small, "--batch.global_size=4", "--batch.micro_size=4", cwd=tmp_path)
    assert (answer.returncode, without_room(answer.stderr)) == (0, "")
    assert "own answers: 8 of up to 8 tokens" in answer.stdout
    assert seektune(*convert, cwd=tmp_path).returncode == 0
    assert inspect(tmp_path / "drafting")
