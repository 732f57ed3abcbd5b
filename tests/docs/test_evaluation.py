"""Every command and example that docs/evaluation.md shows runs, in the order of the page."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.places import ROOT
from tests.run_cli import seektune

from .guides import blocks

PAGE = ROOT / "docs" / "evaluation.md"


@pytest.fixture
def place(tmp_path: Path, toy_model: Callable[..., DeepseekV4ForCausalLM]) -> Path:
    for name, seed in (("trained", 0), ("before", 1)):
        toy_model(torch.float32, vocab_size=512, seed=seed).save_pretrained(tmp_path / name)
    write_hellaswag(tmp_path / "rows", 40, 45)
    (tmp_path / "notes.txt").write_text("The man picks up a red bucket and walks away.\n" * 9, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_runs(place: Path) -> None:
    shown = [
        shlex.split(line, comments=True) for block in blocks("docs/evaluation.md", "sh") for line in block.splitlines()
    ]
    commands = [words for words in shown if words[0] == "seektune"]
    assert [words for words in shown if words not in commands] == [["pip", "install", "-e", ".[eval]"]]
    answers = [seektune(*words[1:], cwd=place) for words in commands]
    assert [(answer.returncode, answer.stderr) for answer in answers] == [(0, "")] * 4
    assert "questions:      45" in answers[0].stdout
    assert "against before:" in answers[1].stdout
    assert "p = " in answers[1].stdout
    assert "of up to 128 tokens, stride 64" in answers[2].stdout
    assert json.loads(answers[3].stdout)["windows"] == 1


@pytest.mark.slow
def test_the_example_of_the_page_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.chdir(place)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
    (example,) = blocks("docs/evaluation.md", "python")
    task = {
        "task": "walks",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "walks.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": " walks",
        "metric_list": [{"metric": "perplexity"}],
    }
    (place / "walks.jsonl").write_text('{"text": "The man"}\n', encoding="utf-8")
    (place / "walks.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    exec(compile(example, str(PAGE), "exec"), {"tasks": [str(place / "walks.yaml")]})
    assert "perplexity" in capsys.readouterr().out
