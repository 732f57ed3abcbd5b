"""Several nodes on one machine: they start, end and restart together, also when one of them is simply gone."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from seektune.launch import rendezvous
from seektune.signals import RESUME_ME
from tests.run_cli import HUNG

from .fake_workers import (
    SLEEPS,
    are_gone,
    ending,
    launcher,
    ready,
    signal_when_ready,
    standin,
    when_ready,
)
from .ports import held_port


def kill_when_ready(folder: Path, other: subprocess.Popen[str]) -> Event:
    """Kill another launcher when both nodes' workers run; set once it is gone."""
    gone = Event()

    def wait() -> None:
        when_ready(folder, 2)
        other.kill()
        other.wait()
        gone.set()

    Thread(target=wait, daemon=True).start()
    return gone


@pytest.mark.slow
def test_two_nodes_form_one_world_and_end_together(endpoint, capfd, tmp_path):
    body = f"open({str(tmp_path)!r} + f'/{{rank}}-of-' + os.environ['WORLD_SIZE'], 'w').close(); print(rank)"
    with launcher(body, 2, nodes=2, node_rank=1, endpoint=endpoint) as other:
        assert ending(standin(body, 2, nodes=2, endpoint=endpoint)).code == 0
        assert other.communicate(timeout=HUNG) == ("0 \n", "")
    assert capfd.readouterr().out == "0\n"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["0-of-4", "1-of-4", "2-of-4", "3-of-4"]


@pytest.mark.slow
def test_a_failure_on_one_node_ends_the_other_with_its_words(endpoint, capfd):
    body = f"""
if rank == 2: leave(1, "loss is nan")
if rank == 0: leave(1, "RuntimeError: Connection closed by peer")
{SLEEPS}
"""
    with launcher(body, 2, nodes=2, node_rank=1, endpoint=endpoint) as other:
        how = ending(standin(body, 2, nodes=2, endpoint=endpoint))
        said = "[rank 2] loss is nan; the other workers were stopped"
        assert (how.code, how.sentence) == (1, said)
        assert other.communicate(timeout=HUNG) == (f"1 {said}\n", "")
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_both_nodes_restart_and_count_alike(endpoint, capfd):
    body = f"if attempt == 2: sys.exit(0)\nif rank == 2 - 2 * attempt: leave(1, 'no')\n{SLEEPS}"
    with launcher(body, 2, nodes=2, node_rank=1, endpoint=endpoint, max_restarts=2) as other:
        assert ending(standin(body, 2, nodes=2, endpoint=endpoint, max_restarts=2)).code == 0
        code, there = other.communicate(timeout=HUNG)
    assert code == "0 \n"
    others, elsewhere = "; the other workers were stopped", "a worker of another node failed"
    assert capfd.readouterr().err.splitlines() == [
        f"seektune: {elsewhere}; restart 1 of 2, from the last checkpoint",
        f"seektune: [rank 0] no{others}; restart 2 of 2, from the last checkpoint",
    ]
    assert there.splitlines() == [
        f"seektune: [rank 2] no{others}; restart 1 of 2, from the last checkpoint",
        f"seektune: {elsewhere}; restart 2 of 2, from the last checkpoint",
    ]


@pytest.mark.slow
def test_a_signal_to_one_node_stops_both_and_the_slower_one_has_its_time(endpoint, tmp_path):
    body = "signal.signal(signal.SIGUSR1, lambda *_: (time.sleep(0.5 * rank), leave(75, f'saved {rank}')))\n"
    body += ready(tmp_path) + SLEEPS
    with launcher(body, 1, nodes=2, node_rank=1, endpoint=endpoint) as other:
        signal_when_ready(tmp_path, 2, signal.SIGUSR1)
        how = ending(standin(body, 1, nodes=2, endpoint=endpoint))
        assert (how.code, how.sentence) == (RESUME_ME, "saved 0")
        assert other.communicate(timeout=HUNG) == ("75 saved 1\n", "")


@pytest.mark.slow
def test_a_node_that_is_gone_is_noticed(endpoint, tmp_path, monkeypatch):
    with launcher(ready(tmp_path) + SLEEPS, 1, nodes=2, node_rank=1, endpoint=endpoint) as other:
        gone, skipped = kill_when_ready(tmp_path, other), [0.0]

        def clock() -> float:
            """Once the other node is gone, time flies: each look is later than a node may be silent."""
            skipped[0] += gone.is_set() * 2 * rendezvous.LOST_AFTER
            return time.monotonic() + skipped[0]

        monkeypatch.setattr(rendezvous, "monotonic", clock)
        how = ending(standin(ready(tmp_path) + SLEEPS, 1, nodes=2, endpoint=endpoint))
    assert how.code == 1
    assert how.sentence.startswith("node 1 does not answer any more; the other nodes were stopped")
    assert are_gone(when_ready(tmp_path, 2))


@pytest.mark.slow
def test_the_node_that_keeps_the_store_may_be_gone_too(endpoint, tmp_path):
    with launcher(ready(tmp_path) + SLEEPS, 1, nodes=2, endpoint=endpoint) as other:
        kill_when_ready(tmp_path, other)
        how = ending(standin(ready(tmp_path) + SLEEPS, 1, nodes=2, node_rank=1, endpoint=endpoint))
    assert how.code == 1
    assert how.sentence.startswith("node 0 does not answer any more")
    assert are_gone(when_ready(tmp_path, 2))


@pytest.mark.slow
def test_a_node_with_other_words_is_refused_on_both(endpoint, tmp_path: Path):
    with launcher(ready(tmp_path), 1, nodes=2, node_rank=1, endpoint=endpoint, identity="b") as other:
        here = ending(standin(ready(tmp_path), 1, nodes=2, endpoint=endpoint, identity="a"))
        there, _ = other.communicate(timeout=HUNG)
    assert (here.code, there) == (2, f"2 {here.sentence}\n")
    assert here.sentence.startswith("node 1 was started with another recipe, override or number of processes than")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_nodes_with_one_number_are_refused(endpoint):
    twins = [launcher(SLEEPS, 1, nodes=3, node_rank=1, endpoint=endpoint) for _ in range(2)]
    how = ending(standin(SLEEPS, 1, nodes=3, endpoint=endpoint))
    assert (how.code, how.sentence) == (2, "another node was started with --node-rank 1 too")
    assert {twin.communicate(timeout=HUNG)[0] for twin in twins} == {f"2 {how.sentence}\n"}


@pytest.mark.parametrize("node_rank", [0, 1])
@pytest.mark.slow
def test_who_waits_for_other_nodes_hears_signals(endpoint, node_rank, monkeypatch):
    waits = [lambda: os.kill(os.getpid(), signal.SIGTERM)]

    def sleep(seconds: float) -> None:
        if waits:
            waits.pop()()

    monkeypatch.setattr(rendezvous, "sleep", sleep)
    how = ending(standin("pass", 1, nodes=2, node_rank=node_rank, endpoint=endpoint))
    assert how.code == RESUME_ME
    assert how.sentence.startswith("stopped by SIGTERM before training began")


@pytest.mark.slow
def test_patience_has_an_end_that_names_who_is_missing(endpoint, monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.5)
    how = ending(standin("pass", 1, nodes=3, node_rank=0, endpoint=endpoint))
    assert (how.code, how.sentence) == (1, f"waited 0.5 s at {endpoint} for node 1, 2 of 3")
    with held_port() as port:
        silent = f"127.0.0.1:{port}"
        how = ending(standin("pass", 1, nodes=2, node_rank=1, endpoint=silent))
    assert (how.code, how.sentence) == (1, f"node 0 did not answer at {silent} for 0.5 s")


def test_a_port_in_use_takes_one_line(capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        how = ending(standin("pass", 1, nodes=2, endpoint=endpoint))
    assert how.code == 1
    assert how.sentence.startswith(f"--rdzv-endpoint {endpoint} cannot be opened on this node")
    assert "\n" not in how.sentence
