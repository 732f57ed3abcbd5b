import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seektune.train.tensorboard import Events
from tests.small_disk import small_disk


def test_tensorboard_reads_what_is_written_at_once(tmp_path):
    with Events(tmp_path / "events", last_step=0) as events:
        events.add(1, {"a": 0.5, "b": 2.0})
        events.add(7, {"a": 0.25})
        read = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("a")] == [(1, 0.5), (7, 0.25)]
    assert [(event.step, event.value) for event in read.Scalars("b")] == [(1, 2.0)]


def test_a_full_disk_is_an_error_here_and_leaves_whole_events(tmp_path):
    written = Events(tmp_path / "events", last_step=0)
    with small_disk(), written as events, pytest.raises(OSError, match="could not write"):
        fill(events)
    steps = [event.step for event in EventAccumulator(str(tmp_path / "events")).Reload().Scalars("a")]
    assert steps == list(range(len(steps)))
    assert steps


def fill(events):
    for step in range(100):
        events.add(step, {"a": 1.0})
