"""Every command and example that docs/evaluation.md shows runs, in the order of the page."""

import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from seektune.cli import main
from seektune.data.datasets.synthetic import write_hellaswag
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.places import ROOT
from tests.run_cli import seektune, without_room

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
    *commands, installation, harness = shown
    assert installation == ["pip", "install", "-e", ".[eval]"]
    assert harness[:5] == ["seektune", "eval", "trained", "--task", "walks.yaml"]  # the next test runs it
    answers = [seektune(*words[1:], cwd=place) for words in commands]
    assert [(answer.returncode, without_room(answer.stderr)) for answer in answers] == [(0, "")] * 4
    assert "questions:      45" in answers[0].stdout
    assert "against before:" in answers[1].stdout
    assert "p = " in answers[1].stdout
    assert "of up to 128 tokens, stride 64" in answers[2].stdout
    assert json.loads(answers[3].stdout)["windows"] == 1


@pytest.mark.slow
def test_the_harness_runs_as_the_page_shows(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(place)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
    # without the index of thousands of shipped tasks
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
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
    command = blocks("docs/evaluation.md", "sh")[-1]
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "answers"))
    with pytest.raises(SystemExit, match="0"):
        main()
    said = capsys.readouterr().out
    assert "perplexity:" in said
    assert "against before:" in said
    assert len([*(place / "results").rglob("samples_walks_*.jsonl")]) == 2
