import math
from functools import partial

import pytest
import torch

from seektune.evaluate.loss import validation_loss
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.train.config import LoggingConfig, LossConfig
from seektune.train.files import read_lines
from seektune.train.gradient import NotFiniteError
from seektune.train.metrics import MetricsLog
from seektune.train.trainer import Trainer

from .small import Words, made_batch, made_steps, settings, small_model

QUIET = LoggingConfig(tensorboard=False)


def trainer_of(folder, model=None, tokenizer=None, **changes):
    folder.mkdir(exist_ok=True)
    model = small_model() if model is None else model
    held_out = partial(validation_loss, model, [made_batch(1000)])
    return Trainer(model, Words() if tokenizer is None else tokenizer, settings(**changes), folder, held_out)


def fit(trainer, steps=4, draw=None):
    with MetricsLog(trainer.folder, steps, QUIET) as log:
        return trainer.fit(made_steps() if draw is None else draw, steps, log)


def losses(folder):
    return [line["loss"] for line in read_lines(folder / "metrics.jsonl")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_equal_to_the_last_digit(tmp_path, dtype):
    for name in ("one", "two"):
        fit(
            trainer_of(
                tmp_path / name, small_model(dtype), loss=LossConfig(bias_update_speed=0.001, balance_weight=0.01)
            )
        )
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert len(set(losses(tmp_path / "one"))) == 4


def test_the_schedule_reaches_the_optimizer(tmp_path):
    trainer = trainer_of(tmp_path, lr=1e-2)
    fit(trainer, steps=3)
    rates = [line["lr"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert rates[:2] == [1e-2, 1e-2]
    assert rates[2] < rates[1]
    assert trainer.optimizer.param_groups[0]["lr"] == rates[2]


@pytest.mark.parametrize(("every", "expected"), [(None, [0, 5]), (2, [0, 2, 4, 5]), (5, [0, 5])])
def test_validation_before_after_and_on_the_way(tmp_path, every, expected):
    before, after = fit(trainer_of(tmp_path, validate_every=every), steps=5)
    lines = read_lines(tmp_path / "validation.jsonl")
    assert [line["step"] for line in lines] == expected
    assert (lines[0]["loss"], lines[-1]["loss"]) == (before, after)
    assert before != after


def test_weights_on_the_way_and_at_the_end(tmp_path):
    trainer = trainer_of(tmp_path, every=2)
    fit(trainer, steps=5)
    trainer.export(tmp_path / "model")
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    for folder in (tmp_path / "checkpoints" / "step-000004", tmp_path / "model"):
        assert {"config.json", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "model")
    for (name, read), trained in zip(again.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(read, trained, rtol=2**-8, atol=1e-6, msg=name)


def test_a_full_disk_while_saving_keeps_the_metrics_and_no_half_checkpoint(tmp_path):
    class FullDisk(Words):
        def save(self, folder):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"could not write .*step-000002: No space left on device; .* stays in"):
        fit(trainer_of(tmp_path, tokenizer=FullDisk(), every=2))
    assert len(losses(tmp_path)) == 2
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_ctrl_c_keeps_the_metrics(tmp_path):
    def draw(steps=made_steps()):  # noqa: B008
        if len(losses(tmp_path)) == 2:
            raise KeyboardInterrupt
        return steps()

    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(tmp_path), draw=draw)
    assert len(losses(tmp_path)) == 2


def test_a_loss_that_is_not_finite_keeps_the_metrics(tmp_path):
    trainer = trainer_of(tmp_path)

    def draw(steps=made_steps()):  # noqa: B008
        if len(losses(tmp_path)) == 2:
            with torch.no_grad():
                trainer.model.head.weight[0, 0] = math.inf
        return steps()

    with pytest.raises(NotFiniteError, match="step 3: the loss is not finite"):
        fit(trainer, draw=draw)
    assert len(losses(tmp_path)) == 2
