import pytest
import torch

from seektune.train import checkpoints as module
from seektune.train.checkpoints import Checkpoints, complete_checkpoints, set_aside_later, step_of
from seektune.train.config import CheckpointConfig

TENSORS = {"a": torch.arange(3.0)}


def failing(monkeypatch, error, times=1):
    """Let the next saves fail."""
    write, left = module.write_train_state, [error] * times

    def fail(folder, tensors, facts, group):
        if left:
            raise left.pop()
        return write(folder, tensors, facts, group)

    monkeypatch.setattr(module, "write_train_state", fail)


def made(folder, reported):
    return Checkpoints(folder, CheckpointConfig(), reported.append)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("of the engine")])
def test_no_failure_in_the_thread_is_silent(tmp_path, monkeypatch, error):
    reported = []
    checkpoints = made(tmp_path, reported)
    failing(monkeypatch, error)
    checkpoints.save(1, TENSORS, {})
    with pytest.raises(type(error), match=r"No space|of the engine"):
        checkpoints.wait()
    assert reported == []


def test_the_next_save_makes_up_for_one_that_failed(tmp_path, monkeypatch):
    reported = []
    checkpoints = made(tmp_path, reported)
    failing(monkeypatch, OSError(28, "No space left on device"))
    checkpoints.save(1, TENSORS, {})
    checkpoints.settle()
    assert "step-000001: No space" in str(checkpoints.failure)
    checkpoints.save(1, TENSORS, {})  # it is the same step, but it is not saved
    assert [saved.folder.name for saved in reported] == ["step-000001"]
    assert checkpoints.failure is None
    checkpoints.wait()


def test_a_second_failure_is_raised_at_once(tmp_path, monkeypatch):
    checkpoints = made(tmp_path, [])
    failing(monkeypatch, OSError(28, "No space left on device"), times=2)
    checkpoints.save(1, TENSORS, {})
    with pytest.raises(OSError, match="step-000002: No space"):
        checkpoints.save(2, TENSORS, {})


def test_later_checkpoints_are_set_aside_and_not_lost(tmp_path):
    for name in ("step-000001", "step-000002", "step-000003", "step-000003.left", "step-²"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000003" / "state.json").touch()
    assert [place.name for place in set_aside_later(tmp_path, 1)] == ["step-000002.left", "step-000003.left"]
    assert [step_of(place) for place in complete_checkpoints(tmp_path)] == [1]
    assert (tmp_path / "step-000003.left" / "state.json").exists()
