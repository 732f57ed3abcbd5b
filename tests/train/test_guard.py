import os
from threading import Event

import pytest

from seektune.train.config import GuardConfig
from seektune.train.guard import RETURNS, LossGuard, Watchdog


def test_a_guard_goes_on_as_one_that_never_stopped():
    config = GuardConfig(spike_factor=2.0, skip_nonfinite=2)
    guard = LossGuard(config)
    assert all(guard.spike(1.0) is None for _ in range(8))
    assert guard.may_skip()
    again = LossGuard(config)
    again.load_state_dict(guard.state_dict())
    assert [again.may_skip(), again.may_skip()] == [True, False]
    assert again.spike(3.0) == 1.0


def test_going_back_to_one_checkpoint_has_an_end():
    guard = LossGuard(GuardConfig(spike_factor=2.0))
    assert [guard.may_go_back(4) for _ in range(RETURNS + 1)] == [True] * RETURNS + [False]
    assert guard.may_go_back(6)


class Ended(BaseException):
    pass


def test_a_stuck_phase_is_named_although_nothing_can_be_written(tmp_path, monkeypatch, capsys):
    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    watch = Watchdog(1.0, tmp_path / "not" / "there")
    watch("step 3: saving")
    with pytest.raises(Ended, match="1"):
        watch._end(2.0)
    assert "stuck in step 3: saving for 2 s" in capsys.readouterr().err


def test_a_disk_that_hangs_does_not_keep_a_stuck_process_alive(tmp_path, monkeypatch):
    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr("seektune.train.guard.PATIENCE", 0.05)
    written = Event()
    monkeypatch.setattr(Watchdog, "_tell_where", lambda self: written.wait())
    with pytest.raises(Ended):
        Watchdog(1.0, tmp_path)._end(2.0)
    written.set()
