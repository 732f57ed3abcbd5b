"""Training never waits for a tracker, and learns once what was lost."""

from collections.abc import Sequence
from threading import Event

from seektune.train.trackers.tracker import TrackedValues
from seektune.train.trackers.tracker_thread import TOGETHER, TrackerThread
from tests.patience import HUNG


class Recording:
    """A tracker that keeps what it gets; it waits for `may_go` before each call, and fails as often as it shall."""

    name = "recording"

    def __init__(self, failures: int = 0):
        self.got: list[TrackedValues] = []
        self.calls: list[int] = []
        self.opened = 0
        self.closed: bool | None = None
        self.may_go = Event()
        self.may_go.set()
        self.asked = Event()
        self.failures = failures

    def open(self) -> None:
        self.asked.set()
        assert self.may_go.wait(HUNG)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server\nis down")
        self.opened += 1

    def log(self, records: Sequence[TrackedValues]) -> None:
        self.calls.append(len(records))
        self.got += records

    def close(self, finished: bool) -> None:
        self.closed = finished


def steps(tracker: Recording) -> list[int]:
    return [record.step for record in tracker.got]


def test_all_values_arrive_in_order_and_the_run_is_ended() -> None:
    tracker = Recording()
    thread = TrackerThread(tracker)
    for step in range(5):
        thread.add(step, {"loss": step / 2})
    assert thread.close(True, HUNG) is None
    assert tracker.got == [TrackedValues(step, {"loss": step / 2}) for step in range(5)]
    assert (tracker.opened, tracker.closed) == (1, True)


def test_what_waited_is_sent_together() -> None:
    tracker = Recording()
    tracker.may_go.clear()
    thread = TrackerThread(tracker)
    thread.add(0, {})
    assert tracker.asked.wait(HUNG)  # the first record is taken
    for step in range(1, 2 * TOGETHER + 2):
        thread.add(step, {})
    tracker.may_go.set()
    assert thread.close(False, HUNG) is None
    assert tracker.calls == [1, TOGETHER, TOGETHER, 1]
    assert steps(tracker) == [*range(2 * TOGETHER + 2)]
    assert tracker.closed is False


def test_a_server_that_hangs_costs_values_and_no_time() -> None:
    tracker = Recording()
    tracker.may_go.clear()
    thread = TrackerThread(tracker, size=3)
    thread.add(0, {})
    assert tracker.asked.wait(HUNG)
    for step in range(1, 10):
        thread.add(step, {})
    assert thread.news() == (
        "recording: the server is too slow, and the queue is full; training continues, and metrics.jsonl has all values"
    )
    assert thread.news() is None
    assert thread.close(True, 0.01) == (
        "recording: 10 of 10 records were not sent (the server is too slow, and the queue is full); "
        "metrics.jsonl has all values"
    )
    tracker.may_go.set()


def test_drops_are_counted() -> None:
    tracker = Recording()
    tracker.may_go.clear()
    thread = TrackerThread(tracker, size=3)
    thread.add(0, {})
    assert tracker.asked.wait(HUNG)
    for step in range(1, 10):
        thread.add(step, {})
    tracker.may_go.set()
    message = thread.close(True, HUNG)
    assert message is not None
    assert "6 of 10 records were not sent" in message
    assert steps(tracker) == [0, 1, 2, 3]


def test_a_server_that_is_down_is_tried_again() -> None:
    tracker = Recording(failures=1)
    tracker.may_go.clear()
    thread = TrackerThread(tracker)
    thread.add(0, {})
    assert tracker.asked.wait(HUNG)
    thread.add(1, {})
    tracker.may_go.set()
    message = thread.close(True, HUNG)
    assert message is not None
    assert "1 of 2 records were not sent (ConnectionError: the server is down)" in message
    assert steps(tracker) == [1]
    assert tracker.closed is True


def test_an_end_that_takes_too_long_is_not_waited_for() -> None:
    tracker = Recording()
    thread = TrackerThread(tracker)
    thread.add(0, {})
    may_end = Event()

    def close(finished: bool) -> None:
        assert may_end.wait(HUNG)

    tracker.close = close  # type: ignore[method-assign]
    message = thread.close(True, 0.1)
    assert message is not None
    assert "the server took longer than logging.flush_timeout, 0.1 s" in message
    may_end.set()
