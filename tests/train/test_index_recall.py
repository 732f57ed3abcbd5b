"""Recall of trained indexers in metrics and report."""

from dataclasses import replace

import pytest
import torch

from seektune.io.jsonl import read_records
from seektune.train.config import LoggingConfig
from seektune.train.index_recall import indexer_changes, recall_of, recall_table
from seektune.train.metrics import MetricsLog
from seektune.train.progress import ProgressLines
from tests.train.tiny_run import RECORD


def test_layers_that_had_nothing_to_choose_from_have_no_recall():
    counts = {1: torch.tensor([3, 12]), 3: torch.tensor([0, 0]), 5: torch.tensor([0, 4])}
    assert recall_of(counts) == {1: 0.25, 5: 0.0}


def test_metrics_have_the_mean_and_each_layer_and_the_report_both_ends(tmp_path):
    with MetricsLog(tmp_path, 3, LoggingConfig(to=())) as log:
        for step, recall in enumerate(({1: 0.25, 3: 0.5}, {1: 0.3}, {1: 0.75, 3: 0.5}), start=1):
            log.step(replace(RECORD, step=step, parts={"indexer_loss": 1 / step}, index_recall=recall))
    lines = read_records(tmp_path / "metrics.jsonl")
    assert [line["index_recall"] for line in lines] == pytest.approx([0.375, 0.3, 0.625])
    assert lines[0]["index_recall_of_layers"] == {"1": 0.25, "3": 0.5}
    assert recall_table(lines) == [
        ("divergence of all layers", "1.0000", "0.3333"),
        ("recall in layer 1", "0.250", "0.750"),
        ("recall in layer 3", "0.500", "0.500"),
    ]


def test_the_report_has_the_layers_of_both_ends():
    """Short documents leave a layer nothing to choose from, at either end."""
    ends = [{"indexer_loss": 1.0, "index_recall_of_layers": each} for each in ({"3": 0.5}, {"11": 0.75, "3": 0.25})]
    assert recall_table(ends)[1:] == [
        ("recall in layer 3", "0.500", "0.250"),
        ("recall in layer 11", "none", "0.750"),
    ]
    assert recall_table(ends[::-1])[1:] == [
        ("recall in layer 3", "0.250", "0.500"),
        ("recall in layer 11", "0.750", "none"),
    ]


def test_the_console_has_the_loss_and_the_mean_recall_of_a_step_and_both_ends_of_the_run(capsys):
    lines = ProgressLines(steps=2, every=1, done=0)
    lines.step(replace(RECORD, parts={"indexer_loss": 0.5}, index_recall={1: 0.25, 3: 0.5}))
    lines.step(replace(RECORD, step=2, parts={"indexer_loss": 0.25}))
    first, second = capsys.readouterr().out.splitlines()
    assert "loss 1.5000 · indexer loss 0.5 · index recall 0.375 · norm" in first
    assert "loss 1.5000 · indexer loss 0.25 · norm" in second
    steps = [{"indexer_loss": 0.5, "index_recall": 0.375}, {"indexer_loss": 0.125, "index_recall": 0.75}]
    ends = ["indexer loss: 0.5000 → 0.1250", "index recall: 0.3750 → 0.7500"]
    assert indexer_changes([{"step": 1, "skipped": "spike"}, *steps, {"indexer_loss": 0.125}]) == ends
    assert indexer_changes([{"indexer_loss": 0.5}]) == ["indexer loss: 0.5000 → 0.5000"]
    assert indexer_changes([{"loss": 1.0}]) == []


def test_frozen_indexers_are_not_mentioned(tmp_path):
    with MetricsLog(tmp_path, 1, LoggingConfig(to=())) as log:
        log.step(RECORD)
    lines = read_records(tmp_path / "metrics.jsonl")
    assert not any("index" in name for name in lines[0])
    assert recall_table(lines) == []
