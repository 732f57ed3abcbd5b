import math

import pytest
import torch

from seektune.data.held_out_loss import HeldOutLoss
from seektune.io.jsonl import read_records
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.signals import Interruption
from seektune.train.gradient import NotFiniteError
from seektune.train.guard import Watchdog
from seektune.train.metrics import MetricsLog
from tests.read_run import losses
from tests.train.tiny_run import MadeStream, Words

from .runs import QUIET, go, make_trainer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_two_runs_are_equal_to_the_last_digit(tmp_path, dtype):
    for name in ("one", "two"):
        go(tmp_path / name, 4, dtype=dtype)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert len({loss for _, loss in losses(tmp_path / "one")}) == 4


@pytest.mark.slow
def test_the_schedule_reaches_the_optimizer(tmp_path):
    trainer = go(tmp_path, 3)
    rates = [line["lr"] for line in read_records(tmp_path / "metrics.jsonl")]
    assert rates[:2] == [1e-2, 1e-2]
    assert rates[2] < rates[1]
    assert trainer.optimizer.param_groups[0]["lr"] == rates[2]


@pytest.mark.parametrize(("steps", "expected"), [(2, [0, 2]), (3, [0, 3]), (7, [0, 3, 6, 7])])
@pytest.mark.slow
def test_validation_before_after_and_on_the_way(tmp_path, steps, expected):
    trainer = make_trainer(tmp_path, Interruption())
    with MetricsLog(tmp_path, steps, QUIET) as log:
        before, after = trainer.fit(steps, log)
    lines = read_records(tmp_path / "validation.jsonl")
    assert [line["step"] for line in lines] == expected
    assert (lines[0]["loss"], lines[-1]["loss"]) == (before, after)
    assert before != after


@pytest.mark.parametrize(("every", "expected"), [(None, [5]), (2, [4, 5]), (5, [5])])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.slow
def test_checkpoints_on_the_way_and_at_the_end(tmp_path, capsys, every, expected, asynchronous):
    trainer = go(tmp_path, 5, every=every, asynchronous=asynchronous)
    found = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert found == [f"step-{step:06}" for step in expected]
    shown = capsys.readouterr().out
    assert [f"saved step-{step:06}: " in shown for step in expected] == [True] * len(expected)
    assert all(saved.size > 10_000 and 0 < saved.blocked <= saved.seconds for saved in trainer.saved)


@pytest.mark.slow
def test_exported_weights_are_the_trained_ones(tmp_path):
    trainer = go(tmp_path, 2)
    trainer.export(tmp_path / "model")
    assert {"config.json", "tokenizer.json"} <= {file.name for file in (tmp_path / "model").iterdir()}
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "model")
    for (name, read), trained in zip(again.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(read, trained, rtol=2**-8, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_full_disk_while_exporting_leaves_nothing_under_the_name(tmp_path):
    class FullDisk(Words):
        def save(self, folder):
            raise OSError(28, "No space left on device")

    trainer = go(tmp_path, 2)
    trainer.tokenizer = FullDisk()
    with pytest.raises(OSError, match=r"could not write .*model: No space left on device; .* stays in"):
        trainer.export(tmp_path / "model")
    assert {place.name for place in tmp_path.iterdir()} == {
        *("checkpoints", "metrics.jsonl", "validation.jsonl", "expert_loads.jsonl")
    }


@pytest.mark.slow
def test_a_loss_that_is_not_finite_keeps_the_metrics(tmp_path):
    class Spoiling(MadeStream):
        def next_step(self):
            if self.drawn == 2:
                with torch.no_grad():
                    self.model.stages[0].head.weight[0, 0] = math.inf
            return super().next_step()

    stream = Spoiling()

    def change(trainer):
        stream.model = trainer.model

    with pytest.raises(NotFiniteError, match="step 3: the loss is not finite"):
        go(tmp_path, 5, change, stream=stream)
    assert len(losses(tmp_path)) == 2


@pytest.mark.slow
def test_a_validation_that_gets_on_is_not_taken_for_one_that_hangs(tmp_path, monkeypatch):
    phases = []
    monkeypatch.setattr(Watchdog, "__call__", lambda _, phase: phases.append(phase))

    def validate(alive):
        alive()
        return HeldOutLoss(1.0)

    def change(trainer):
        trainer.validation_loss = validate

    go(tmp_path, 1, change)
    assert [phases.count(f"validating after step {step}") for step in (0, 1)] == [2, 2]


@pytest.mark.slow
def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path):
    def change(trainer):
        trainer.validation_loss = lambda _: HeldOutLoss(math.nan if trainer.step == 2 else 1.0)

    with pytest.raises(NotFiniteError, match="the validation loss after step 2 is not finite; nothing is exported"):
        go(tmp_path, 2, change)
    assert [line["step"] for line in read_records(tmp_path / "validation.jsonl")] == [0]
