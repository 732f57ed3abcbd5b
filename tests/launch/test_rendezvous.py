"""Several nodes on one machine: they start, end and restart together, also when one of them is killed."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest

from seektune.exit_codes import RESUME_ME
from seektune.launch import rendezvous
from tests.patience import HUNG

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
def test_failure_on_one_node_ends_the_other_with_its_message(endpoint, capfd):
    body = f"""
if rank == 2: leave(1, "loss is nan")
if rank == 0: leave(1, "RuntimeError: Connection closed by peer")
{SLEEPS}
"""
    with launcher(body, 2, nodes=2, node_rank=1, endpoint=endpoint) as other:
        how = ending(standin(body, 2, nodes=2, endpoint=endpoint))
        said = "[rank 2] loss is nan; the other workers were stopped"
        assert (how.code, how.message) == (1, said)
        assert other.communicate(timeout=HUNG) == (f"1 {said}\n", "")
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_both_nodes_restart_with_the_same_count(endpoint, capfd):
    body = f"if attempt == 2: sys.exit(0)\nif rank == 2 - 2 * attempt: leave(1, 'no')\n{SLEEPS}"
    with launcher(body, 2, nodes=2, node_rank=1, endpoint=endpoint, max_restarts=2) as other:
        assert ending(standin(body, 2, nodes=2, endpoint=endpoint, max_restarts=2)).code == 0
        code, there = other.communicate(timeout=HUNG)
    assert code == "0 \n"
    others, elsewhere = "; the other workers were stopped", "a worker on another node failed"
    assert capfd.readouterr().err.splitlines() == [
        f"seektune: {elsewhere}; restart 1 of 2, from the last checkpoint",
        f"seektune: [rank 0] no{others}; restart 2 of 2, from the last checkpoint",
    ]
    assert there.splitlines() == [
        f"seektune: [rank 2] no{others}; restart 1 of 2, from the last checkpoint",
        f"seektune: {elsewhere}; restart 2 of 2, from the last checkpoint",
    ]


@pytest.mark.slow
def test_signal_to_one_node_stops_both_and_waits_for_the_slower(endpoint, tmp_path):
    body = f"""
os.environ["FOLDER"] = {str(tmp_path)!r}
if rank == 0: mark("pid-0", str(os.getpid()))
def stop(*_):
    if rank == 1: wait_for_end(0)
    leave(75, f"saved {{rank}}")
signal.signal(signal.SIGUSR1, stop)
"""
    body += ready(tmp_path) + SLEEPS
    with launcher(body, 1, nodes=2, node_rank=1, endpoint=endpoint) as other:
        signal_when_ready(tmp_path, 2, signal.SIGUSR1)
        how = ending(standin(body, 1, nodes=2, endpoint=endpoint))
        assert (how.code, how.message) == (RESUME_ME, "saved 0")
        assert other.communicate(timeout=HUNG) == ("75 saved 1\n", "")


@pytest.mark.slow
def test_lost_node_ends_the_job(endpoint, tmp_path, monkeypatch):
    with launcher(ready(tmp_path) + SLEEPS, 1, nodes=2, node_rank=1, endpoint=endpoint) as other:
        gone, skipped = kill_when_ready(tmp_path, other), [0.0]

        def clock() -> float:
            """Once the other node is gone, time flies: each look is later than a node may be silent."""
            skipped[0] += gone.is_set() * 2 * rendezvous.HEARTBEAT_TIMEOUT
            return time.monotonic() + skipped[0]

        monkeypatch.setattr(rendezvous, "monotonic", clock)
        how = ending(standin(ready(tmp_path) + SLEEPS, 1, nodes=2, endpoint=endpoint))
    assert how.code == 1
    assert how.message.startswith("node 1 is not responding; the other nodes were stopped")
    assert are_gone(when_ready(tmp_path, 2))


@pytest.mark.slow
def test_lost_node_0_ends_the_job(endpoint, tmp_path):
    with launcher(ready(tmp_path) + SLEEPS, 1, nodes=2, endpoint=endpoint) as other:
        kill_when_ready(tmp_path, other)
        how = ending(standin(ready(tmp_path) + SLEEPS, 1, nodes=2, node_rank=1, endpoint=endpoint))
    assert how.code == 1
    assert how.message.startswith("node 0 is not responding")
    assert are_gone(when_ready(tmp_path, 2))


@pytest.mark.slow
def test_node_with_another_command_is_refused_on_both(endpoint, tmp_path: Path):
    with launcher(ready(tmp_path), 1, nodes=2, node_rank=1, endpoint=endpoint, identity="b") as other:
        here = ending(standin(ready(tmp_path), 1, nodes=2, endpoint=endpoint, identity="a"))
        there, _ = other.communicate(timeout=HUNG)
    assert (here.code, there) == (2, f"2 {here.message}\n")
    assert here.message.startswith("node 1 was started with a different recipe, override or number of processes than")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_nodes_with_the_same_rank_are_refused(endpoint):
    twins = [launcher(SLEEPS, 1, nodes=3, node_rank=1, endpoint=endpoint) for _ in range(2)]
    how = ending(standin(SLEEPS, 1, nodes=3, endpoint=endpoint))
    assert (how.code, how.message) == (2, "more than one node was started with --node-rank 1")
    assert {twin.communicate(timeout=HUNG)[0] for twin in twins} == {f"2 {how.message}\n"}


@pytest.mark.parametrize("node_rank", [0, 1])
@pytest.mark.slow
def test_signal_interrupts_the_wait_for_other_nodes(endpoint, node_rank, monkeypatch):
    waits = [lambda: os.kill(os.getpid(), signal.SIGTERM)]

    def sleep(seconds: float) -> None:
        if waits:
            waits.pop()()

    monkeypatch.setattr(rendezvous, "sleep", sleep)
    how = ending(standin("pass", 1, nodes=2, node_rank=node_rank, endpoint=endpoint))
    assert how.code == RESUME_ME
    assert how.message.startswith("stopped by SIGTERM while starting")


@pytest.mark.slow
def test_join_timeout_names_the_missing_nodes(endpoint, monkeypatch):
    monkeypatch.setattr(rendezvous, "JOIN_TIMEOUT", 0.5)
    how = ending(standin("pass", 1, nodes=3, node_rank=0, endpoint=endpoint))
    assert (how.code, how.message) == (1, f"node 1, 2 of 3 did not join at {endpoint} within 0.5 s")
    with held_port() as port:
        silent = f"127.0.0.1:{port}"
        how = ending(standin("pass", 1, nodes=2, node_rank=1, endpoint=silent))
    assert (how.code, how.message) == (1, f"node 0 did not answer at {silent} for 0.5 s")


def test_port_in_use_is_reported_in_one_line(capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        how = ending(standin("pass", 1, nodes=2, endpoint=endpoint))
    assert how.code == 1
    assert how.message.startswith(f"--rdzv-endpoint {endpoint} cannot be opened on this node")
    assert "\n" not in how.message


def test_the_store_of_one_node_is_reached_from_nowhere_else():
    store = rendezvous._store("127.0.0.1", 0, serve=True)
    client = rendezvous._store("127.0.0.1", store.port, serve=False)
    client.set("key", "value")
    assert store.get("key") == b"value"
    listening = [each.laddr for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert [place.ip for place in listening if place.port == store.port] == ["127.0.0.1"]
