"""The command that docs/drafters.md shows runs, on a model with DSpark stages."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from tests.conftest import DSPARK
from tests.run_cli import seektune

from .guides import blocks


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, toy_model) -> None:
    for seed, name in enumerate(("trained", "before")):
        toy_model(torch.float32, vocab_size=512, seed=seed, drafter=True, **DSPARK).save_pretrained(tmp_path / name)
    rows = [{"prompt": "The man"}, {"messages": [{"role": "user", "content": "2+2?"}]}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (command,) = blocks("docs/drafters.md", "sh")
    answer = seektune(*shlex.split(command)[1:], cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "prompts:        2," in answer.stdout
    assert "tokens per step:" in answer.stdout
    assert "draft 5 accepted:" in answer.stdout
    assert "against before:" in answer.stdout
