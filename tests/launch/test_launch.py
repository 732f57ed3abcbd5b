"""Whole jobs of fake workers on one node: exit codes, messages, and that no process is left."""

import signal
from collections.abc import Callable

import psutil
import pytest

from seektune.exit_codes import RESUME_ME
from seektune.launch.agent import threads
from tests.patience import HUNG

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
    """Processes that a test started and did not stop; fork servers of other tests may still run."""
    before = psutil.Process().children(recursive=True)

    def processes() -> list[psutil.Process]:
        now = psutil.Process().children(recursive=True)
        return [child for child in now if child not in before and child.status() != psutil.STATUS_ZOMBIE]

    return processes


def test_workers_get_rank_variables_and_only_rank_0_prints(capfd):
    body = """
print(rank, *(os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")))
print("a warning", file=sys.stderr)
"""
    assert ending(standin(body, 3)).code == 0
    said = capfd.readouterr()
    assert said.out == "0 0 3 3 0\n"
    assert sorted(said.err.splitlines()) == ["[rank 1] a warning", "[rank 2] a warning", "a warning"]


def test_message_of_the_first_failure_is_reported(tmp_path, capfd, left: Processes):
    body = f"""
if rank == 1: mark("failed"); leave(1, "loss is nan at step 3")
wait_for("failed")
if rank == 2: leave(1, "RuntimeError: [pair.cc:537] Connection closed by peer [127.0.0.1]:999")
{SLEEPS}
"""
    how = ending(standin(body, 4, folder=tmp_path))
    assert (how.code, how.message) == (1, "[rank 1] loss is nan at step 3; the other workers were stopped")
    assert capfd.readouterr().err == ""
    assert left() == []


def test_root_cause_is_reported_even_if_it_arrives_after_a_lost_peer(tmp_path):
    body = """
mark(f"pid-{rank}", str(os.getpid()))
if rank == 0: leave(1, "RuntimeError: Connection closed by peer")
wait_for_end(0)
leave(1, "No space left on device")
"""
    assert ending(standin(body, 2, folder=tmp_path)).message.startswith("[rank 1] No space left")


def test_second_independent_failure_is_printed_with_its_rank(tmp_path, capfd):
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
    assert {how.message[9:23], said[0][19:]} == {"disk 0 is full", "disk 1 is full"}
    assert said[0].startswith(
        ("[rank 0] seektune: ", "[rank 1] seektune: ", "[rank 2] seektune: ", "[rank 3] seektune: ")
    )


def test_user_mistake_found_by_every_worker_is_reported_once_without_rank(capfd):
    how = ending(standin("leave(2, 'row 3 has no endings')", 3, max_restarts=2))
    assert (how.code, how.message) == (2, "row 3 has no endings")
    assert capfd.readouterr().err == ""


def test_killed_worker_is_reported_with_its_signal(tmp_path):
    body = f"""
mark(f"pid-{{rank}}", str(os.getpid()))
if rank == 2: wait_for_end(1); os.kill(os.getpid(), signal.SIGKILL)
if rank == 1: leave(1, "RuntimeError: Connection reset by peer")
{SLEEPS}
"""
    how = ending(standin(body, 3, folder=tmp_path, advice="the same command resumes"))
    said = "rank 2 was killed by SIGKILL (out of memory?); the other workers were stopped; the same command resumes"
    assert (how.code, how.message) == (1, said)
    assert ending(standin("os.kill(os.getpid(), 6)", 1)).message.startswith("rank 0 was killed by SIGABRT; the same")


def test_silent_worker_is_reported_with_its_exit_code():
    assert ending(standin("sys.exit(7)", 1)).message == "rank 0 ended with exit code 7"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.slow
def test_signal_is_forwarded_and_workers_have_time_to_save(number, tmp_path):
    signal_when_ready(tmp_path, 3, number)
    how = ending(standin(SAVES + ready(tmp_path) + SLEEPS, 3, folder=tmp_path, max_restarts=3))
    assert (how.code, how.message) == (RESUME_ME, f"stopped by {number.name}; saved in step-3")


def test_signal_before_workers_handle_it_is_a_clean_exit(tmp_path):
    signal_when_ready(tmp_path, 2, signal.SIGTERM)
    how = ending(standin(ready(tmp_path) + SLEEPS, 2))
    assert how.code == RESUME_ME
    assert how.message == "stopped by SIGTERM while starting; the same command starts again"


def test_worker_that_exits_early_leaves_the_others_time_to_save(tmp_path):
    body = """
mark(f"pid-{rank}", str(os.getpid()))
if rank == 0: wait_for_end(1)
leave(75, f"saved by rank {rank}")
"""
    how = ending(standin(body, 2, folder=tmp_path))
    assert (how.code, how.message) == (RESUME_ME, "saved by rank 0")


@pytest.mark.slow
def test_workers_are_killed_after_the_grace_period(tmp_path, left: Processes):
    signal_when_ready(tmp_path, 2, signal.SIGTERM)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    how = ending(standin(deaf + ready(tmp_path) + SLEEPS, 2, grace=0.5))
    assert how.code == 1
    assert how.message.startswith("ranks 0, 1 did not stop within 0.5 s (--shutdown-timeout)")
    assert left() == []


def test_failure_while_stopping_does_not_restart(tmp_path, capfd):
    signal_when_ready(tmp_path, 2, signal.SIGTERM)
    fails = "signal.signal(signal.SIGTERM, lambda *_: leave(1, 'No space left on device'))\n"
    assert ending(standin(fails + ready(tmp_path) + SLEEPS, 2, max_restarts=3)).code == 1
    assert "restart" not in capfd.readouterr().err


@pytest.mark.slow
def test_failures_restart_up_to_max_restarts_with_a_line_each(capfd):
    body = f"if rank == 1: leave(1, f'attempt {{attempt}} failed')\n{SLEEPS}"
    how = ending(standin(body, 2, max_restarts=2))
    assert how.message == "[rank 1] attempt 2 failed; the other workers were stopped"
    others = "; the other workers were stopped"
    assert capfd.readouterr().err.splitlines() == [
        f"seektune: [rank 1] attempt 0 failed{others}; restart 1 of 2, from the last checkpoint",
        f"seektune: [rank 1] attempt 1 failed{others}; restart 2 of 2, from the last checkpoint",
    ]


@pytest.mark.parametrize("code", [2, RESUME_ME])
def test_user_mistakes_and_stops_are_not_restarted(code, capfd):
    assert ending(standin(f"leave({code}, 'so be it')", 2, max_restarts=2)).code == code
    assert "restart" not in capfd.readouterr().err


def test_threads_are_divided_among_workers_unless_set(capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert ending(standin("print(os.environ['OMP_NUM_THREADS'])", 2)).code == 0
    assert capfd.readouterr().out == f"{threads(2)}\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert ending(standin("print(os.environ['OMP_NUM_THREADS'])", 2)).code == 0
    assert capfd.readouterr().out == "7\n"
    assert threads(10_000) == 1


@pytest.mark.slow
def test_process_group_forms_again_after_a_restart(capfd):
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
def test_workers_die_with_a_killed_launcher(tmp_path):
    with launcher(ready(tmp_path) + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPS, 3) as process:
        pids = when_ready(tmp_path, 3)
        process.kill()
    assert are_gone(pids)


@pytest.mark.slow
def test_second_request_kills_all_workers(tmp_path):
    (tmp_path / "heard").mkdir()
    hears = ready(tmp_path / "heard").strip()
    deaf = f"def hear(*_): {hears}\nsignal.signal(signal.SIGTERM, hear)\n"
    with launcher(deaf + ready(tmp_path) + "while True: time.sleep(1)", 2) as process:
        pids = when_ready(tmp_path, 2)
        process.terminate()
        when_ready(tmp_path / "heard", 2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=HUNG)
    assert (process.returncode, said) == (128 + signal.SIGINT, "seektune: second SIGINT: workers killed\n")
    assert are_gone(pids)


@pytest.mark.slow
def test_closed_standard_error_does_not_disturb_workers():
    body = "for _ in range(1000): print('x' * 1000, file=sys.stderr)\nleave(1, 'done')"
    with launcher(body, 1) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.stdout is not None
        assert process.stdout.read() == "1 [rank 0] done\n"
