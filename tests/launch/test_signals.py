"""Requests to stop: one request may be delivered twice, and a second one ends the process at once."""

import os
import signal
from collections.abc import Callable
from queue import SimpleQueue
from threading import Semaphore, Thread

import pytest

from seektune import signals
from seektune.exit_codes import RESUME_ME
from seektune.launch import local
from seektune.launch.signal_relay import SignalRelay
from seektune.signals import SAME_REQUEST, Interrupted, Interruption, StopRequests
from tests.patience import HUNG

from .fake_workers import SLEEPS, ending, ready, standin, when_ready


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = Semaphore(0)
        """Released by each reading."""

    def __call__(self) -> float:
        """The time."""
        now = self.now
        self.reads.release()
        return now


class ExitError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Turns the end of the process into an error; gives what was printed."""

    def leave(code: int) -> None:
        raise ExitError(code)

    monkeypatch.setattr(signals.os, "_exit", leave)
    return lambda: capfd.readouterr().err


@pytest.mark.parametrize(
    ("after", "number", "second"),
    [
        (0.0, signal.SIGTERM, False),
        (SAME_REQUEST, signal.SIGTERM, False),
        (SAME_REQUEST + 0.01, signal.SIGTERM, True),
        (0.0, signal.SIGINT, True),
        (60.0, signal.SIGUSR1, True),
    ],
)
def test_what_counts_as_a_second_request(after: float, number: int, second: bool) -> None:
    clock = Clock()
    requests = StopRequests(clock)
    assert not requests.is_second(signal.SIGTERM)
    clock.now += after
    assert requests.is_second(number) is second


def test_a_request_that_is_repeated_does_not_move_its_time() -> None:
    clock = Clock()
    requests = StopRequests(clock)
    found = []
    for _ in range(4):
        found.append(requests.is_second(signal.SIGTERM))
        clock.now += 0.6 * SAME_REQUEST
    assert found == [False, False, True, True]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_training_saves_when_one_request_is_delivered_twice(number: signal.Signals, exits: Callable[[], str]) -> None:
    clock = Clock()
    saved = []

    def train() -> None:
        with Interruption(clock=clock) as interruption, interruption.deferred():
            for _ in range(3):
                os.kill(os.getpid(), number)
            saved.append(interruption.name)

    with pytest.raises(Interrupted, match=number.name):
        train()
    assert saved == [number.name]
    assert exits() == ""


@pytest.mark.parametrize(("later", "second"), [(0.0, signal.SIGINT), (2.0, signal.SIGTERM)])
def test_training_ends_at_once_on_a_second_request(
    later: float, second: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also while no Python code of the main thread runs: a thread counts."""
    clock = Clock()
    codes: SimpleQueue[int] = SimpleQueue()
    monkeypatch.setattr(signals.os, "_exit", codes.put)
    with Interruption(clock=clock) as interruption, interruption.shielded():
        os.kill(os.getpid(), signal.SIGTERM)
        assert clock.reads.acquire(timeout=HUNG)
        clock.now += later
        os.kill(os.getpid(), second)
        assert codes.get(timeout=HUNG) == 128 + second
    assert capfd.readouterr().err == f"seektune: second {second.name}: exited without saving\n"


def test_a_repetition_is_dated_by_its_delivery() -> None:
    """The main thread is in a call of C when it comes, so that the handler runs much later."""
    clock = Clock()
    with Interruption(clock=clock) as interruption, interruption.shielded():
        os.kill(os.getpid(), signal.SIGTERM)
        assert clock.reads.acquire(timeout=HUNG)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that another thread takes it
        os.kill(os.getpid(), signal.SIGTERM)
        assert clock.reads.acquire(timeout=HUNG)
        clock.now += 60
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert interruption.name == "SIGTERM"


def test_a_worker_ignores_further_requests() -> None:
    clock = Clock()
    with Interruption(worker=True, clock=clock) as interruption, interruption.shielded():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            clock.now += 5
        assert interruption.name == "SIGTERM"


def test_the_launcher_counts_requests_and_not_deliveries(exits: Callable[[], str]) -> None:
    clock = Clock()
    killed: list[str] = []

    def relay(received: SignalRelay) -> None:
        with received:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert (received.signal, killed) == (signal.SIGTERM, [])
            clock.now += 2
            os.kill(os.getpid(), signal.SIGTERM)

    received = SignalRelay(clock)
    received.on_second_signal = lambda: killed.append("workers")
    with pytest.raises(ExitError):
        relay(received)
    assert killed == ["workers"]
    assert exits() == "seektune: second SIGTERM: workers killed\n"


def test_a_request_that_another_node_reported_first_is_no_second_one() -> None:
    clock = Clock()
    with SignalRelay(clock) as received:
        received.signal = signal.SIGUSR1  # read from the store of node 0
        clock.now += 30
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert received.signal == signal.SIGUSR1


@pytest.mark.slow
def test_workers_save_when_the_launcher_is_signalled_twice(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As coreutils' `timeout` does: the child, and then its whole group."""
    monkeypatch.setattr(local, "SignalRelay", lambda: SignalRelay(Clock()))
    for name in ("heard", "begun"):
        (tmp_path / name).mkdir()
    body = f"""
def save(number, frame):
    {ready(tmp_path / "heard").strip()}
    wait_for("again")
    leave(75, "saved in step-3")
signal.signal(signal.SIGTERM, save)
"""

    def deliver() -> None:
        when_ready(tmp_path / "begun", 1)
        os.kill(os.getpid(), signal.SIGTERM)
        when_ready(tmp_path / "heard", 1)
        os.kill(os.getpid(), signal.SIGTERM)
        (tmp_path / "again").symlink_to("-")

    sender = Thread(target=deliver)
    sender.start()
    how = ending(standin(body + ready(tmp_path / "begun") + SLEEPS, 1, folder=tmp_path, max_restarts=1))
    sender.join()
    assert (how.code, how.message) == (RESUME_ME, "saved in step-3")
