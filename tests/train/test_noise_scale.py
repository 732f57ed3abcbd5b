"""The noise scale of gradients, against gradients of single rows, and in the lines of the steps that are measured."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch import Tensor

from seektune.data.step_data import StepData
from seektune.io.jsonl import read_records
from seektune.io.run_files import METRICS
from seektune.model.objective import CROSS_ENTROPY
from seektune.parallel.model import ParallelModel
from seektune.sequence import IGNORE_INDEX, Batch
from seektune.train.config import LossConfig
from seektune.train.noise_scale import SIGNAL, VARIANCE, PartGradient, half_gradients, noise_values
from seektune.train.report_noise import noise_sections
from seektune.train.step import make_step_loss
from seektune.train.trainer import Trainer

from .runs import go
from .tiny_run import made_batch, small_model

ROWS = 4
TAUGHT = 6
PLAIN = LossConfig(mtp_weight=0.0)
PAIRINGS = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2))
"""Orders of four rows in which every second one is each of the halves that there are."""


def gradient(model: ParallelModel, batch: Batch) -> Tensor:
    """Of the mean loss of a batch, all parameters in one row, fp64."""
    data = StepData.of([batch])
    model.train([batch], make_step_loss(data, PLAIN, has_mtp=False), lambda phase: None)
    found = [parameter.grad.double().flatten() for parameter in model.parameters() if parameter.grad is not None]
    for parameter in model.parameters():
        parameter.grad = None
    return torch.cat(found)


def ordered(batch: Batch, rows: list[int]) -> Batch:
    return Batch(batch.tokens[rows], batch.labels[rows], batch.documents[rows])


@pytest.fixture(scope="module")
def model() -> ParallelModel:
    return ParallelModel.alone(small_model())


def test_halves_over_all_pairings_are_the_covariance_of_the_rows_gradients(model: ParallelModel) -> None:
    batch = made_batch(0, rows=ROWS, taught=TAUGHT)
    each = torch.stack([gradient(model, ordered(batch, [row])) for row in range(ROWS)])
    mean = each.mean(dim=0)
    covariance = float((each - mean).square().sum()) / (ROWS - 1)
    found = []
    for order in PAIRINGS:
        data = StepData.of([ordered(batch, list(order))])
        halves = half_gradients(model, data, PLAIN, CROSS_ENTROPY)
        found.append(noise_values(halves, float(mean.norm()), data.taught))
    # a row's gradient is the mean of six tokens'
    assert fmean(each["gradient_variance"] for each in found) == pytest.approx(TAUGHT * covariance, rel=1e-4)
    signal = float(mean.square().sum()) - covariance / ROWS
    assert fmean(each["gradient_signal"] for each in found) == pytest.approx(signal, rel=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_micro_batches_are_one_step(model: ParallelModel) -> None:
    batch = made_batch(1, rows=ROWS)
    cut = StepData.of([ordered(batch, [row]) for row in range(ROWS)])
    apart = half_gradients(model, cut, PLAIN, CROSS_ENTROPY)
    together = half_gradients(model, StepData.of([batch]), PLAIN, CROSS_ENTROPY)
    assert [each.square for each in apart] == pytest.approx([each.square for each in together], rel=1e-4)
    even = gradient(model, ordered(batch, [0, 2]))
    assert together[0].square == pytest.approx(float(even.square().sum()), rel=1e-4)


def test_halves_of_different_sizes_give_the_expectation() -> None:
    """With squared norms as they are expected, the scale is the one that they were made from."""
    signal, variance = 0.5, 80.0
    parts = [PartGradient(signal + variance / tokens, tokens) for tokens in (30, 90)]
    values = noise_values(parts, (signal + variance / 120) ** 0.5, 120)
    assert values == pytest.approx({"gradient_variance": 80.0, "gradient_signal": 0.5, "noise_scale": 160.0})


def test_a_half_that_teaches_nothing_gives_no_value(model: ParallelModel) -> None:
    batch = made_batch(0)
    labels = batch.labels.clone()
    labels[1] = IGNORE_INDEX
    assert not half_gradients(model, StepData.of([replace(batch, labels=labels)]), PLAIN, CROSS_ENTROPY)
    assert noise_values([], 1.0, 10) == {}


@pytest.mark.slow
def test_measured_steps_have_it_in_their_line_and_train_as_others_do(tmp_path: Path) -> None:
    def measure(trainer: Trainer) -> None:
        trainer.settings = replace(trainer.settings, noise_scale_every=2)

    go(tmp_path / "measured", 3, measure)
    go(tmp_path / "plain", 3)
    lines, plain = (read_records(tmp_path / name / METRICS) for name in ("measured", "plain"))
    assert ["gradient_variance" in line for line in lines] == [False, True, False]
    assert lines[1]["gradient_variance"] > 0
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]


def test_the_report_has_the_scale_of_the_means() -> None:
    steps = [
        {"step": step, "taught_tokens": 100, VARIANCE: variance, SIGNAL: signal}
        for step, variance, signal in ((2, 10.0, -1.0), (4, 30.0, 0.5), (6, 10.0, 0.0), (8, 30.0, 0.04))
    ]
    (found,) = noise_sections([{"step": 1, "taught_tokens": 100}, *steps])
    assert "too noisy to tell" in found
    assert "6 to 8" in found
    assert "1,000" in found, "40 / 2 over 0.04 / 2"
    assert noise_sections([{"step": 1}]) == []
