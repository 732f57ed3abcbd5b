"""The published recipe at tiny size as jobs of four processes: the same losses, spread, stopped and killed."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.workflows.verify import verify
from tests.held_run import hold, wait_until_held
from tests.launch.forked import ForkedJob
from tests.patience import HUNG
from tests.places import FLASH, ROOT
from tests.read_run import losses, validations

pytestmark = pytest.mark.slow
STEPS = 6
SPREAD = ("--nproc-per-node=4", "--parallel.pp_size=2", "--parallel.ep_size=2")
PAIR = ("--nproc-per-node=2", "--parallel.pp_size=2", "--parallel.ep_size=1")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hellaswag(tmp_path_factory.mktemp("rows"), 60, 6)


def words(rows: Path, folder: Path, *more: str) -> list[str]:
    return [
        *(str(FLASH), "--model.preset=tiny"),
        *("--model.dtype=fp32", f"--data.path={rows}", "--batch.global_size=8", "--batch.micro_size=4"),
        *("--evaluate.limit=4", "--evaluate.every=2", "--evaluate.tasks=[hellaswag,validation]"),
        *("--checkpoint.every=2", "--logging.to=[]"),
        *(f"--steps={STEPS}", "--optimizer.lr=1e-3", f"--run_dir={folder}", "--schedule.warmup_steps=2", *more),
    ]


@contextmanager
def job(rows: Path, folder: Path, *more: str, **settings: str) -> Iterator[ForkedJob]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **settings}
    code = "from seektune.cli import automodel; automodel()"
    with ForkedJob(code, words(rows, folder, *more), ROOT, environment, folder.parent / "printed") as made:
        yield made


def finished(process: ForkedJob, code: int = 0) -> tuple[str, str]:
    said = process.communicate(timeout=HUNG)
    assert process.returncode == code, said
    return said


def steps_done(folder: Path) -> int:
    return len(losses(folder))


def workers(process: ForkedJob) -> list[psutil.Process]:
    """The launcher's, by rank."""
    return sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)


def same(folder: Path, other: Path) -> None:
    assert [step for step, _ in losses(folder)] == list(range(1, STEPS + 1))
    assert dict(losses(folder)) == pytest.approx(dict(losses(other)), rel=1e-4)
    assert dict(validations(folder)) == pytest.approx(dict(validations(other)), rel=1e-4)
    for when in ("before", "after"):
        one, two = (json.loads((each / "evaluation.json").read_text())["validation"][when] for each in (folder, other))
        assert one["losses"] == pytest.approx(two["losses"], rel=1e-3)
        assert one["tokens_each"] == two["tokens_each"]
        assert sum(one["hits"]) == pytest.approx(sum(two["hits"]), abs=1)
    assert verify(str(folder / "model"), str(other / "model"), tolerance=1e-2)


@pytest.fixture(scope="module")
def alone(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with job(rows, folder, "--parallel.pp_size=1", "--parallel.ep_size=1") as process:
        finished(process)
    return folder


def test_a_job_is_stopped_and_goes_on_with_other_sizes(rows: Path, alone: Path, tmp_path: Path):
    folder, first, second = tmp_path / "run", tmp_path / "first", tmp_path / "second"
    with job(rows, folder, *SPREAD, **hold(2, 3, first)) as process:
        wait_until_held(process, first)
        # only one worker hears of it, and twice
        victim = workers(process)[2]
        victim.send_signal(signal.SIGTERM)
        victim.send_signal(signal.SIGTERM)
        _, said = finished(process, 75)
    assert said.startswith("automodel: stopped by")
    assert "saved in" in said
    assert steps_done(folder) == 3
    with job(rows, folder, *PAIR, **hold(0, 5, second)) as process:
        wait_until_held(process, second)
        # as systems do that signal every process of a job, and the launcher passes it on
        for other in [*workers(process), process]:
            other.send_signal(signal.SIGUSR1)
        _, said = finished(process, 75)
    assert "stopped by SIGUSR1; saved in" in said
    assert steps_done(folder) == 5
    with job(rows, folder, "--parallel.pp_size=1", "--parallel.ep_size=1") as process:
        shown, _ = finished(process)
    assert "resuming after step 5" in shown
    same(folder, alone)


def test_a_killed_worker_ends_the_job_or_starts_it_again(rows: Path, alone: Path, tmp_path: Path):
    folder, first, second = tmp_path / "run", tmp_path / "first", tmp_path / "second"
    with job(rows, folder, *PAIR, **hold(1, 2, first)) as process:
        wait_until_held(process, first)
        workers(process)[1].kill()
        _, said = finished(process, 1)
    assert "rank 1 was killed by SIGKILL (out of memory?); the other workers were stopped; the same command" in said
    with job(rows, folder, *PAIR, "--max-restarts=1", **hold(1, 4, second)) as process:
        wait_until_held(process, second)
        workers(process)[1].kill()
        shown, said = finished(process)
    # (stages - 1) / (micro-batches + stages - 1)
    assert "2 stages, 8 micro-batches of 1 rows; a process waits about 11% of a step" in shown
    assert "rank 1 was killed by SIGKILL" in said
    assert "restart 1 of 1, from the last checkpoint" in said
    same(folder, alone)
