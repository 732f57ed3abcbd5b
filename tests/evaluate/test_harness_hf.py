"""The harness gives our weights the same numbers by `HarnessModel` and, exported, by its own `hf` on transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.data.datasets.synthetic import made_hellaswag
from seektune.data.tokenizer import load_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from seektune.evaluate.harness import HarnessModel  # noqa: E402

VOCABULARY = 2048
ROWS = 12
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{ctx}}",
        "doc_to_choice": "{{endings}}",
        "doc_to_target": "{{label}}",
        "num_fewshot": 1,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "continuations": {
        "output_type": "generate_until",
        "doc_to_text": "{{ctx}}",
        "doc_to_target": "{{endings[0]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{ctx}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A task of each type of request, on made rows in a file."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in made_hellaswag(ROWS, seed=2)), encoding="utf-8")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "fewshot_split": "test",
    }
    return [{"task": name, **shared, **task} for name, task in TASKS.items()]


@dataclass(frozen=True)
class Found:
    """A task's metrics by name, and the answer to each row."""

    numbers: dict[str, Any]
    answers: list[Any]


def evaluated(model: Any, tasks: list[dict[str, Any]]) -> list[Found]:
    manager = TaskManager(include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    names = [task["task"] for task in tasks]
    answers = {name: [each["filtered_resps"] for each in found["samples"][name]] for name in names}
    return [Found(found["results"][name], answers[name]) for name in names]


@pytest.mark.slow
def test_three_tasks_have_the_numbers_of_hf(toy_model, tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    tokenizer = load_tokenizer(VOCABULARY)
    model = toy_model(torch.float32, vocab_size=VOCABULARY, num_hidden_layers=3, compress_ratios=[0, 4, 128, 0])
    model.save_pretrained(tmp_path / "model", "fp32")
    tokenizer.save(tmp_path / "model")
    limits = {"batch_size": 1, "max_length": 256, "device": "cpu"}
    hf = HFLM(str(tmp_path / "model"), dtype="float32", attn_implementation="eager", add_bos_token=True, **limits)
    # with add_bos_token, hf counts BOS itself as a token of a text
    without = HFLM(hf.model, tokenizer=hf.tokenizer, add_bos_token=False, **limits)
    theirs = [*evaluated(hf, tasks[:2]), *evaluated(without, tasks[2:])]
    ours = evaluated(HarnessModel(model, tokenizer, max_length=256), tasks)
    for mine, other in zip(ours, theirs, strict=True):
        numbers = {key: x for key, x in other.numbers.items() if isinstance(x, float)}
        assert numbers
        assert {key: mine.numbers[key] for key in numbers} == pytest.approx(numbers, rel=1e-5)
    assert ours[1].answers == theirs[1].answers
    assert len(set(map(str, ours[1].answers))) > ROWS // 2
    for mine, other in zip(ours[0].answers, theirs[0].answers, strict=True):
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in other]
        assert [log for log, _ in mine] == pytest.approx([log for log, _ in other], abs=1e-3)
