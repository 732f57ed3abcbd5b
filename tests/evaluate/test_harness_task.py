"""Tasks of lm-evaluation-harness by name, here one of a file."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate import harness_run
from seektune.evaluate.config import TaskConfig
from seektune.evaluate.harness_task import HarnessTask


def test_without_the_harness_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness_run, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"names lm_eval:arc_easy: pip install 'seektune\[eval\]'"):
        HarnessTask.of(TaskConfig(name="lm_eval:arc_easy"), 64)


@pytest.mark.slow
def test_a_task_is_scored_with_the_harnesss_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_model
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.tasks import TaskManager

    # without the index of thousands of shipped tasks
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text('{"text": "The man", "right": 0}\n{"text": "A dog", "right": 1}\n', "utf-8")
    task = {
        "task": "walks",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": "right",
        "doc_to_choice": ["walks", "barks"],
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "walks.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    config = TaskConfig(name=f"lm_eval:{tmp_path}/walks.yaml", label="walks")
    found = HarnessTask.of(config, 64)
    score = found.run(toy_model(torch.float32, vocab_size=512), load_tokenizer(512), 8192)
    assert (score.task.title, score.n) == ("walks", 2)
    acc = score.metrics["acc"]
    assert acc.value in (0.0, 0.5, 1.0)
    error = math.sqrt(acc.value * (1 - acc.value))  # of two examples: std / sqrt(2), with Bessel's correction
    assert acc.high - acc.value == pytest.approx(1.96 * error, abs=1e-9)
    with pytest.raises(ValueError, match="names lm_eval:nothing: lm-evaluation-harness has no task of this name"):
        HarnessTask.of(TaskConfig(name="lm_eval:nothing"), 64)
