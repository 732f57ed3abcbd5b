import json
import math
import os
import random
import signal

import pytest
import torch

from seektune.checkpoint import check_train_state
from seektune.cli.errors import explain
from seektune.model.fake_quantized import fake_quantize_modules
from seektune.signals import Interrupted
from seektune.train import checkpoints as module
from seektune.train.checkpoints import complete_checkpoints, step_of, thin_out
from seektune.train.config import GuardConfig
from seektune.train.gradient import NotFiniteError
from seektune.train.guard import RETURNS, SpikeError
from seektune.train.state_tensors import run_tensors
from tests.forks import run_forked
from tests.read_run import losses, validations
from tests.train.tiny_run import MadeStream, small_model

from .runs import end_by_two_signals, go, go_killed, hang, same_state

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("dtype", "master"),
    [(torch.float32, "fp32"), (torch.bfloat16, "fp32"), (torch.bfloat16, "bf16_stochastic")],
)
def test_resumed_run_equals_uninterrupted_run(tmp_path, dtype, master):
    whole = go(tmp_path / "whole", 7, dtype=dtype, master=master)
    for steps in (2, 4, 7):  # a run that is told to do more goes on from its last checkpoint
        parts = go(tmp_path / "parts", steps, dtype=dtype, master=master, stream=MadeStream())
    # the schedule depends on the length of the run, so the parts are compared with parts that never stopped
    assert len(losses(tmp_path / "parts")) == 7
    assert len({step for step, _ in losses(tmp_path / "parts")}) == 7
    cut = go_until_signal(tmp_path / "cut", 3, 7, dtype=dtype, master=master)
    assert same_state(whole, cut)
    assert not same_state(whole, parts)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert validations(tmp_path / "cut") == validations(tmp_path / "whole")


def go_until_signal(folder, at, steps, number=signal.SIGTERM, **changes):
    """Send a signal while step `at` draws its data, then resume."""

    class Signalling(MadeStream):
        def next_step(self):
            if self.drawn == at - 1:
                os.kill(os.getpid(), number)
            return super().next_step()

    with pytest.raises(Interrupted, match=signal.Signals(number).name):
        go(folder, steps, stream=Signalling(), **changes)
    assert step_of(complete_checkpoints(folder / "checkpoints")[-1]) == at
    return go(folder, steps, **changes)


def test_a_resumed_run_of_muon_equals_an_uninterrupted_one(tmp_path):
    changes = {"dtype": torch.bfloat16, "optimizer": "muon"}
    whole = go(tmp_path / "whole", 5, **changes)
    cut = go_until_signal(tmp_path / "cut", 3, 5, **changes)
    assert same_state(whole, cut)
    assert any(name.endswith(":momentum") for name in run_tensors(cut.model, cut.optimizer))


def test_a_resumed_run_of_quantization_aware_training_equals_an_uninterrupted_one(tmp_path):
    def rounded():
        model = small_model(torch.bfloat16)
        fake_quantize_modules(model, "fp8")
        return model

    whole = go(tmp_path / "whole", 5, model=rounded())
    assert same_state(whole, go_until_signal(tmp_path / "cut", 3, 5, model=rounded()))
    assert not same_state(whole, go(tmp_path / "plain", 5, dtype=torch.bfloat16))


@pytest.mark.parametrize(("saved", "wanted"), [("adamw", "muon"), ("muon", "adamw")])
def test_the_state_of_another_optimizer_is_refused_in_one_line(tmp_path, saved, wanted):
    go(tmp_path, 2, optimizer=saved)
    with pytest.raises(
        ValueError, match=f"step-000002 holds the state of optimizer {saved}, which {wanted} cannot"
    ) as error:
        go(tmp_path, 4, optimizer=wanted)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_in_a_step_finishes_and_saves_it(tmp_path, number):
    whole = go(tmp_path / "whole", 4)
    assert same_state(whole, go_until_signal(tmp_path / "cut", 3, 4, number))


@pytest.mark.parametrize("step", [0, 3, 4])
def test_a_signal_in_a_validation_abandons_it_and_it_is_held_again(tmp_path, step):
    whole = go(tmp_path / "whole", 4)

    def change(trainer):
        loss = trainer.validation_loss

        def interrupted(alive):
            if trainer.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(alive)

        trainer.validation_loss = interrupted

    with pytest.raises(Interrupted):
        go(tmp_path / "cut", 4, change)
    assert step not in dict(validations(tmp_path / "cut"))
    assert same_state(whole, go(tmp_path / "cut", 4))
    assert validations(tmp_path / "cut") == validations(tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_signal_in_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    whole = go(tmp_path / "whole", 4)
    write = module.write_train_state

    def interrupted(folder, tensors, facts, group):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(folder, tensors, facts, group)

    monkeypatch.setattr(module, "write_train_state", interrupted)
    with pytest.raises(Interrupted):
        go(tmp_path / "cut", 4)
    monkeypatch.undo()
    for checkpoint in complete_checkpoints(tmp_path / "cut" / "checkpoints"):
        check_train_state(checkpoint)
    assert same_state(whole, go(tmp_path / "cut", 4))


def test_a_second_request_ends_the_process_at_once(tmp_path):
    assert run_forked(end_by_two_signals, tmp_path) == 128 + signal.SIGINT


def test_a_stuck_step_ends_the_process_and_names_the_phase(tmp_path, capfd):
    assert run_forked(hang, tmp_path) == 1
    assert "hang" in (tmp_path / "stuck.txt").read_text() or "next_step" in (tmp_path / "stuck.txt").read_text()


def test_thirty_kills_lose_nothing(tmp_path):
    """At each of them files are as they may be wherever a run is killed: between two, it only computes."""
    steps, dice = 60, random.Random(0)
    whole = go(tmp_path / "whole", steps)
    folder, in_save = tmp_path / "killed", 0
    for _ in range(30):
        at = dice.randint(1, 50)
        assert run_forked(go_killed, folder, steps, torch.get_num_threads(), at) == -signal.SIGKILL
        in_save += any((folder / "checkpoints").glob(".*.partial"))
        for checkpoint in complete_checkpoints(folder / "checkpoints"):
            check_train_state(checkpoint)
    assert in_save > 5
    assert same_state(whole, go(folder, steps))
    assert losses(folder) == losses(tmp_path / "whole")
    assert validations(folder) == validations(tmp_path / "whole")


def test_a_failed_save_is_raised_and_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    go(tmp_path, 2)
    before = {file: file.read_bytes() for file in (tmp_path / "checkpoints" / "step-000002").iterdir()}

    def full(folder, tensors, facts, group):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_train_state", full)
    with pytest.raises(OSError, match=r"could not write .*step-00000.: No space left on device"):
        go(tmp_path, 8)
    assert {file: file.read_bytes() for file in (tmp_path / "checkpoints" / "step-000002").iterdir()} == before


def test_old_checkpoints_are_thinned_out(tmp_path):
    for step in range(10, 101, 10):
        (tmp_path / f"step-{step:06}").mkdir()
    thin_out(tmp_path, keep_last=2, keep_every=40)
    assert [step_of(place) for place in complete_checkpoints(tmp_path)] == [40, 80, 90, 100]


class Poisoned(MadeStream):
    """Some draws spoil the model's loss, by a weight that the next draw repairs."""

    def __init__(self, draws, value=math.nan):
        super().__init__()
        self.draws, self.value, self.trainer, self.kept = draws, value, None, None

    def next_step(self):
        weight = self.trainer.model.whole.norm.weight
        with torch.no_grad():
            if self.kept is not None:
                weight.copy_(self.kept)
                self.kept = None
            if self.drawn + 1 in self.draws:
                self.kept = weight.clone()
                weight.mul_(self.value)
        return super().next_step()


def poisoned(folder, draws, steps, guard, value=math.nan):
    stream = Poisoned(draws, value)

    def change(trainer):
        stream.trainer = trainer

    return go(folder, steps, change, stream=stream, guard=guard)


def test_steps_that_are_not_finite_are_skipped_up_to_a_limit(tmp_path):
    poisoned(tmp_path / "two", {4, 5}, 7, GuardConfig(skip_nonfinite=2))
    assert [step for step, _ in losses(tmp_path / "two")] == [1, 2, 3, 6, 7]
    with pytest.raises(NotFiniteError, match=r"The state before this step is saved in .*step-000005"):
        poisoned(tmp_path / "three", {4, 5, 6}, 7, GuardConfig(skip_nonfinite=2))


def test_the_state_that_is_saved_is_the_last_good_one(tmp_path):
    whole = go(tmp_path / "whole", 6)
    with pytest.raises(NotFiniteError):
        poisoned(tmp_path / "bad", {4}, 6, GuardConfig())
    facts = json.loads((tmp_path / "bad" / "checkpoints" / "step-000003" / "state.json").read_text())
    assert (facts["step"], facts["stream"]) == (3, {"drawn": 3})
    assert losses(tmp_path / "bad") == losses(tmp_path / "whole")[:3]
    assert whole.step == 6


@pytest.mark.parametrize(("action", "expected"), [("report", 14), ("rollback", 14)])
def test_a_spike_is_reported_or_rolled_back(tmp_path, capsys, action, expected):
    guard = GuardConfig(spike_factor=1.5, spike_action=action)
    trainer = poisoned(tmp_path, {11}, 14, guard, value=200.0)
    shown = capsys.readouterr().out
    assert "step 11: the loss spiked" in shown
    assert ("back to step 10" in shown) == (action == "rollback")
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 15))
    # a run that went back drew one step's data more, and forgot the spike
    assert trainer.stream.drawn == (15 if action == "rollback" else 14)
    assert (max(loss for _, loss in losses(tmp_path)) > 10) == (action == "report")


def test_a_resumed_run_knows_which_losses_were_usual(tmp_path, capsys):
    guard = GuardConfig(spike_factor=1.5, spike_action="rollback")
    whole = poisoned(tmp_path / "whole", {11}, 14, guard, value=200.0)
    stream = Poisoned({11}, 200.0)

    def change(trainer):
        stream.trainer = trainer
        draw = stream.next_step

        def signalling():
            if stream.drawn == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw()

        stream.next_step = signalling

    with pytest.raises(Interrupted):
        go(tmp_path / "cut", 14, change, stream=stream, guard=guard)
    capsys.readouterr()
    cut = poisoned(tmp_path / "cut", {11}, 14, guard, value=200.0)
    assert "step 11: the loss spiked" in capsys.readouterr().out
    assert same_state(whole, cut)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_a_run_that_spikes_whatever_follows_does_not_go_back_for_ever(tmp_path):
    guard = GuardConfig(spike_factor=1.5, spike_action="rollback")
    with pytest.raises(SpikeError, match=rf"went back to .*step-000010 {RETURNS} times"):
        poisoned(tmp_path, set(range(11, 99)), 14, guard, value=200.0)
    check_train_state(tmp_path / "checkpoints" / "step-000010")


def test_a_damaged_checkpoint_is_not_gone_back_to(tmp_path, monkeypatch):
    write = module.write_train_state

    def damaging(folder, tensors, facts, group):
        size = write(folder, tensors, facts, group)
        (folder / "state.json").write_text("{}")
        return size

    monkeypatch.setattr(module, "write_train_state", damaging)
    with pytest.raises(ValueError, match=r"state.json has 2 bytes"):
        poisoned(tmp_path, {11}, 14, GuardConfig(spike_factor=1.5, spike_action="rollback"), value=200.0)


def test_a_disk_that_is_full_when_a_signal_comes_is_what_is_told(tmp_path, monkeypatch):
    def full(folder, tensors, facts, group):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_train_state", full)
    with pytest.raises(OSError, match="No space") as caught:
        go_until_signal(tmp_path, 1, 4)
    assert explain(caught.value) == (1, str(caught.value))
