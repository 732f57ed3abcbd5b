"""Every command and example that docs/generation.md shows runs."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.places import ROOT
from tests.run_cli import seektune, without_room

from .guides import blocks, commands

PAGE = ROOT / "docs" / "generation.md"


@pytest.fixture
def place(tmp_path: Path, toy_model: Callable[..., DeepseekV4ForCausalLM]) -> Path:
    toy_model(torch.float32, vocab_size=512).save_pretrained(tmp_path / "trained")
    rows = [{"prompt": "The man"}, {"messages": [{"role": "user", "content": "2+2?"}]}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    place = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    (tmp_path / "place.json").write_text(json.dumps({**place, "additionalProperties": False}), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_runs(place: Path) -> None:
    shown = [each.words for each in commands("docs/generation.md") if not each.hardware]
    answers: list[subprocess.CompletedProcess[str]] = [seektune(*words[1:], cwd=place) for words in shown]
    assert [words[1] for words in shown] == ["generate"] * 4 + ["chat"] + ["generate"] * 3
    assert [answer.returncode for answer in answers] == [0] * 8
    assert ["tokens of context fit" in answer.stderr for answer in answers] == [True] * 5 + [False] + [True] * 2
    assert [without_room(answer.stderr) for answer in answers] == ["", "", "2 of 2 prompts\n", "", "", "", "", ""]
    assert len((place / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert "/system TEXT" in answers[4].stdout
    assert "tokens of context fit" in answers[5].stdout
    assert json.loads(answers[6].stdout)["city"] in ("Oslo", "Rome")
    assert answers[7].stdout in ("yes\n", "no\n")


@pytest.mark.slow
def test_the_example_of_the_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    for example in blocks("docs/generation.md", "python"):
        exec(compile(example, str(PAGE), "exec"), names)
    assert names["longer"].shape[1] <= 11  # type: ignore[attr-defined]
    tokens = [*names["first"], *names["rest"]]  # type: ignore[misc]
    assert [sum(token.request == i for token in tokens) for i in (0, 1)] == [8, 4]
