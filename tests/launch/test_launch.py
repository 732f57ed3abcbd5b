"""Whole jobs of stand-in workers on one node: how they end, what is said, and that nobody is left."""

import signal
from collections.abc import Callable

import psutil
import pytest

from seektune.launch.agent import threads
from seektune.signals import RESUME_ME
from tests.run_cli import HUNG

from .fake_workers import SLEEPS, are_gone, ending, launcher, ready, signal_when_ready, standin, when_ready

SAVES = """
mark(f"pid-{rank}", str(os.getpid()))
def save(number, frame):
    if rank: wait_for_end(rank - 1)
    leave(75, f"stopped by {signal.Signals(number).name}; saved in step-3")
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): signal.signal(each, save)
"""


Processes = Callable[[], list[psutil.Process]]


@pytest.fixture
def left() -> Processes:
    """What a test started and did not end; other tests' servers of forks may live on."""
    before = psutil.Process().children(recursive=True)

    def processes() -> list[psutil.Process]:
        now = psutil.Process().children(recursive=True)
        return [child for child in now if child not in before and child.status() != psutil.STATUS_ZOMBIE]

    return processes


def test_workers_know_their_place_and_only_rank_0_prints(capfd):
    body = """
print(rank, *(os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")))
print("a warning", file=sys.stderr)
"""
    assert ending(standin(body, 3)).code == 0
    said = capfd.readouterr()
    assert said.out == "0 0 3 3 0\n"
    assert sorted(said.err.splitlines()) == ["[rank 1] a warning", "[rank 2] a warning", "a warning"]


def test_the_failing_workers_line_is_the_one_that_is_said(tmp_path, capfd, left: Processes):
    body = f"""
if rank == 1: mark("failed"); leave(1, "loss is nan at step 3")
wait_for("failed")
if rank == 2: leave(1, "RuntimeError: [pair.cc:537] Connection closed by peer [127.0.0.1]:999")
{SLEEPS}
"""
    how = ending(standin(body, 4, folder=tmp_path))
    assert (how.code, how.sentence) == (1, "[rank 1] loss is nan at step 3; the other workers were stopped")
    assert capfd.readouterr().err == ""
    assert left() == []


def test_a_cause_is_waited_for_that_comes_after_its_consequence(tmp_path):
    body = """
mark(f"pid-{rank}", str(os.getpid()))
if rank == 0: leave(1, "RuntimeError: Connection closed by peer")
wait_for_end(0)
leave(1, "No space left on device")
"""
    assert ending(standin(body, 2, folder=tmp_path)).sentence.startswith("[rank 1] No space left")


def test_another_failure_beside_the_first_is_shown_with_its_rank(tmp_path, capfd):
    body = """
print("seektune: disk", rank // 2, "is full", file=sys.stderr)
wait_until_read()
mark(f"said-{rank}")
for other in range(4): wait_for(f"said-{other}")
sys.exit(1)
"""
    how = ending(standin(body, 4, folder=tmp_path))
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert {how.sentence[9:23], said[0][19:]} == {"disk 0 is full", "disk 1 is full"}
    assert said[0].startswith(
        ("[rank 0] seektune: ", "[rank 1] seektune: ", "[rank 2] seektune: ", "[rank 3] seektune: ")
    )


def test_a_mistake_that_every_worker_finds_is_said_once_without_a_rank(capfd):
    how = ending(standin("leave(2, 'row 3 has no endings')", 3, max_restarts=2))
    assert (how.code, how.sentence) == (2, "row 3 has no endings")
    assert capfd.readouterr().err == ""


def test_a_killed_worker_is_named_with_its_signal(tmp_path):
    """Also where the launcher sees first that another one lost it."""
    body = f"""
mark(f"pid-{{rank}}", str(os.getpid()))
if rank == 2: wait_for_end(1); os.kill(os.getpid(), signal.SIGKILL)
if rank == 1: leave(1, "RuntimeError: Connection reset by peer")
{SLEEPS}
"""
    how = ending(standin(body, 3, folder=tmp_path, advice="the same command resumes"))
    said = "rank 2 was killed by SIGKILL (out of memory?); the other workers were stopped; the same command resumes"
    assert (how.code, how.sentence) == (1, said)
    assert ending(standin("os.kill(os.getpid(), 6)", 1)).sentence.startswith("rank 0 was killed by SIGABRT; the same")


def test_a_worker_that_says_nothing_is_named_with_its_exit_code():
    assert ending(standin("sys.exit(7)", 1)).sentence == "rank 0 ended with exit code 7"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.slow
def test_a_signal_reaches_all_and_they_have_time_to_save(number, tmp_path):
    signal_when_ready(tmp_path, 3, number)
    how = ending(standin(SAVES + ready(tmp_path) + SLEEPS, 3, folder=tmp_path, max_restarts=3))
    assert (how.code, how.sentence) == (RESUME_ME, f"stopped by {number.name}; saved in step-3")


def test_a_signal_before_workers_listen_is_an_orderly_end_too(tmp_path):
    signal_when_ready(tmp_path, 2, signal.SIGTERM)
    how = ending(standin(ready(tmp_path) + SLEEPS, 2))
    assert how.code == RESUME_ME
    assert how.sentence == "stopped by SIGTERM before training began; the same command starts again"


def test_a_worker_that_leaves_by_itself_leaves_the_others_time(tmp_path):
    body = """
mark(f"pid-{rank}", str(os.getpid()))
if rank == 0: wait_for_end(1)
leave(75, f"saved by rank {rank}")
"""
    how = ending(standin(body, 2, folder=tmp_path))
    assert (how.code, how.sentence) == (RESUME_ME, "saved by rank 0")


@pytest.mark.slow
def test_who_does_not_stop_in_time_is_killed(tmp_path, left: Processes):
    signal_when_ready(tmp_path, 2, signal.SIGTERM)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    how = ending(standin(deaf + ready(tmp_path) + SLEEPS, 2, grace=0.5))
    assert how.code == 1
    assert how.sentence.startswith("ranks 0, 1 did not stop within 0.5 s (--shutdown-timeout)")
    assert left() == []


def test_a_failure_while_stopping_is_no_reason_to_restart(tmp_path, capfd):
    signal_when_ready(tmp_path, 2, signal.SIGTERM)
    fails = "signal.signal(signal.SIGTERM, lambda *_: leave(1, 'No space left on device'))\n"
    assert ending(standin(fails + ready(tmp_path) + SLEEPS, 2, max_restarts=3)).code == 1
    assert "restart" not in capfd.readouterr().err


def test_failures_are_restarted_as_often_as_allowed_and_said_each_time(capfd):
    body = f"if rank == 1: leave(1, f'attempt {{attempt}} failed')\n{SLEEPS}"
    how = ending(standin(body, 2, max_restarts=2))
    assert how.sentence == "[rank 1] attempt 2 failed; the other workers were stopped"
    others = "; the other workers were stopped"
    assert capfd.readouterr().err.splitlines() == [
        f"seektune: [rank 1] attempt 0 failed{others}; restart 1 of 2, from the last checkpoint",
        f"seektune: [rank 1] attempt 1 failed{others}; restart 2 of 2, from the last checkpoint",
    ]


@pytest.mark.parametrize("code", [2, RESUME_ME])
def test_mistakes_and_requests_are_not_restarted(code, capfd):
    assert ending(standin(f"leave({code}, 'so be it')", 2, max_restarts=2)).code == code
    assert "restart" not in capfd.readouterr().err


def test_threads_are_shared_out_unless_the_user_did(capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert ending(standin("print(os.environ['OMP_NUM_THREADS'])", 2)).code == 0
    assert capfd.readouterr().out == f"{threads(2)}\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert ending(standin("print(os.environ['OMP_NUM_THREADS'])", 2)).code == 0
    assert capfd.readouterr().out == "7\n"
    assert threads(10_000) == 1


@pytest.mark.slow
def test_a_process_group_forms_and_forms_again_after_a_restart(capfd):
    body = """
import torch
from torch import distributed
torch.set_num_threads(1)
distributed.init_process_group("gloo")
one = torch.ones(1)
distributed.all_reduce(one)
if attempt == 0 and rank == 1: os.kill(os.getpid(), signal.SIGKILL)
distributed.all_reduce(one)
if rank == 0: print(attempt, one.item())
distributed.destroy_process_group()
"""
    assert ending(standin(body, 2, torch=True, max_restarts=1)).code == 0
    said = capfd.readouterr()
    assert said.out == "1 4.0\n"
    restarts = [line for line in said.err.splitlines() if line.startswith("seektune: ")]
    assert len(restarts) == 1
    assert restarts[0].startswith("seektune: rank 1 was killed by SIGKILL")


@pytest.mark.slow
def test_nobody_outlives_a_launcher_that_is_killed(tmp_path):
    with launcher(ready(tmp_path) + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPS, 3) as process:
        pids = when_ready(tmp_path, 3)
        process.kill()
    assert are_gone(pids)


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(tmp_path):
    (tmp_path / "heard").mkdir()
    hears = ready(tmp_path / "heard").strip()
    deaf = f"def hear(*_): {hears}\nsignal.signal(signal.SIGTERM, hear)\n"
    with launcher(deaf + ready(tmp_path) + "while True: time.sleep(1)", 2) as process:
        pids = when_ready(tmp_path, 2)
        process.terminate()
        when_ready(tmp_path / "heard", 2)
        assert process.poll() is None
        process.terminate()
        _, said = process.communicate(timeout=HUNG)
    assert (process.returncode, said) == (128 + signal.SIGTERM, "seektune: SIGTERM again: ended at once\n")
    assert are_gone(pids)


@pytest.mark.slow
def test_workers_end_as_ever_where_nobody_reads_their_errors():
    body = "for _ in range(1000): print('x' * 1000, file=sys.stderr)\nleave(1, 'done')"
    with launcher(body, 1) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.stdout is not None
        assert process.stdout.read() == "1 [rank 0] done\n"
