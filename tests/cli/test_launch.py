"""Starting several processes: mistakes are answered before any starts, and real workers end as one."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import typer

from seektune.cli import automodel_app
from seektune.cli.errors import explain
from seektune.cli.launch_flags import LaunchFlags
from seektune.cli.start import WORKER_VARIABLES, check_world, make_launch_config
from seektune.data.datasets.synthetic import write_hellaswag
from seektune.recipe.load import read_recipe
from tests.cli.test_cli import FLASH, TINY, refused, run
from tests.held_run import hold_rows, wait_until_held
from tests.launch.forked import ForkedJob
from tests.patience import HUNG
from tests.places import ROOT
from tests.run_cli import CODE


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")  # what a launcher sets is taken back


def mistake(*words: str) -> str:
    """What `automodel` answers to words that are a mistake, in this process."""
    with pytest.raises((ValueError, typer.TyperException)) as caught:
        typer.main.get_command(automodel_app)(list(words), standalone_mode=False)()
    code, said = explain(caught.value)
    assert code == 2
    return said


TWO_NODES = ("--nnodes=2", "--rdzv-endpoint=127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.parametrize("door", ["main", "automodel"])
def test_sizes_that_do_not_multiply_out_are_refused_with_the_overrides_that_help(door: str) -> None:
    verb = ["train"] if door == "main" else []
    said = refused(run(door, *verb, FLASH))
    assert "parallel.pp_size 4 x parallel.ep_size 32 takes 128 processes or a multiple" in said
    assert "this job has one process; one process can do --parallel.pp_size=1 --parallel.ep_size=1" in said
    assert "(and --model.preset=tiny" in said
    assert "does not fit one device" not in mistake(FLASH, "--model.preset=tiny-0731")
    for words in (["--nproc-per-node=8"], ["--nproc_per_node", "8"]):
        said = mistake(*words, FLASH, "--model.preset=tiny")
        assert "this job has 8 processes" in said
        assert "8 processes can do --parallel.pp_size=" in said
        assert "--parallel.pp_size=2 --parallel.ep_size=4" in said


@pytest.mark.parametrize(
    ("pp", "cp", "ep", "world", "fits"),
    [
        (1, 1, 1, 1, True),
        (1, 1, 1, 4, True),
        (2, 1, 8, 16, True),
        (2, 1, 8, 8, False),
        (2, 1, 2, 4, True),
        (2, 1, 4, 4, False),
        (1, 4, 2, 4, True),
        (1, 2, 8, 8, True),
        (1, 2, 4, 2, False),
        (3, 1, 1, 4, False),
    ],
)
def test_which_worlds_fit(pp: int, cp: int, ep: int, world: int, fits: bool) -> None:
    sizes = [f"--parallel.pp_size={pp}", f"--parallel.cp_size={cp}", f"--parallel.ep_size={ep}"]
    recipe = read_recipe(TINY, sizes).recipe
    if fits:
        check_world(recipe, world)
        return
    with pytest.raises(ValueError, match=f"takes {recipe.parallel.least_world()} processes"):
        check_world(recipe, world)


def test_streamed_weights_have_one_process() -> None:
    words = ["--model.preset=null", "--model.weights=some/where", "--model.quantized=true", "--model.offload=stream"]
    recipe = read_recipe(TINY, [*words, "--lora.targets=[attn]", "--loss.bias_update_speed=0"]).recipe
    recipe.check_world(1)
    with pytest.raises(ValueError, match=r"model\.offload stream is for one process, not for 2"):
        recipe.check_world(2)


def test_the_recipe_is_read_before_processes_are_counted() -> None:
    assert "did you mean optimizer.lr?" in mistake("--nproc-per-node=8", FLASH, "--optimizer.lrr=1")
    assert "did you mean optimizer.lr?" in mistake("--nproc-per-node=x", FLASH, "--optimizer.lrr=1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nproc-per-node=many"], "--nproc-per-node=many must be a positive number, gpu or auto"),
        (["--nproc-per-node=0"], "--nproc-per-node=0 must be"),
        (["--nproc-per-node=-2"], "--nproc-per-node=-2 must be"),
        (["--nnodes=0"], "--nnodes"),
        (["--max_restarts=-1"], "--max"),
        (["--node_rank=1"], "--node-rank=1 must be less than --nnodes=1"),
        (["--nnodes=2"], "--nnodes=2 needs --rdzv-endpoint=HOST:PORT"),
        (["--nnodes=2", "--rdzv_endpoint=host"], "a free port on it, not host"),
        (["--nnodes=2", "--rdzv_endpoint=host:99999"], "not host:99999"),
        ([*TWO_NODES], "2 nodes need a run folder on a shared disk: set --run_dir="),
        (["--max-restarts=1", "--resume=no"], "resume must be auto, not no"),
        (["--dry-run", "--parallel=auto"], "parallel: auto chooses its layout at launch, from the GPUs; seektune plan"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_flags_that_make_no_sense_take_one_line(words: list[str], said: str) -> None:
    assert said in mistake(*words, TINY)


def test_a_worker_starts_no_others_and_shares_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORKER_VARIABLES:
        monkeypatch.setenv(name, "4" if name == "WORLD_SIZE" else "0")
    assert "give --nproc-per-node and the other process flags to the launcher" in mistake(TINY, "--nproc-per-node=4")
    assert "4 processes need a common run folder: set --run_dir=" in mistake(TINY)
    assert "takes 128 processes" in mistake(FLASH, "--run_dir=r")
    # only all three of them make a worker: operators of clusters set some for the container
    monkeypatch.delenv("LOCAL_RANK")
    assert "must be less than" in mistake(TINY, "--node-rank=4")


def test_every_worker_and_restart_gets_one_folder_and_the_users_words() -> None:
    loaded = read_recipe(TINY, ["--steps", "9"])
    flags = LaunchFlags("4", max_restarts=2, shutdown_timeout=30)
    job = make_launch_config(loaded, TINY, ["--steps", "9"], flags, 4, {"HOME": "/h"})
    assert job.command[:7] == (sys.executable, "-P", "-m", "seektune", "train", TINY, "--steps")
    assert job.command[7] == "9"
    assert job.command[8].startswith("--run_dir=runs/deepseek_v4_tiny_hellaswag-")
    assert (job.processes, job.nodes, job.max_restarts, job.grace) == (4, 1, 2, 30)
    assert job.command[8] in job.advice
    assert job.environment == {"HOME": "/h"}


def test_nodes_agree_when_only_their_number_differs() -> None:
    def identity(*words: str, processes: int = 2, node: int = 0) -> str:
        overrides = ["--run_dir=r", *words]
        flags = LaunchFlags(str(processes), 2, node, "h:1")
        return make_launch_config(read_recipe(TINY, overrides), TINY, overrides, flags, processes, {}).identity

    assert identity() == identity(node=1)
    assert len({identity(), identity("--steps=9"), identity(processes=3)}) == 3


@contextmanager
def held_job(folder: Path, *words: str, rank: int | str = "all") -> Iterator[ForkedJob]:
    """A launcher whose workers, or one of them, wait before they read rows, once they have met."""
    environment = {**os.environ, **hold_rows(rank, folder / "held")}
    made = ["train", TINY, *words, f"--data.path={write_hellaswag(folder / 'rows', 20, 6)}", f"--run_dir={folder}/run"]
    with ForkedJob(CODE, made, ROOT, environment, folder / "printed") as process:
        yield process


def workers(process: ForkedJob, folder: Path, count: int) -> list[psutil.Process]:
    """The launcher's workers by rank, once they wait."""
    for rank in range(count):
        wait_until_held(process, folder / f"held-{rank}")
    return sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)


@pytest.mark.slow
def test_a_mistake_that_workers_find_takes_one_line(tmp_path: Path) -> None:
    words = ("train", TINY, "--nproc-per-node=2", "--data.path=/nowhere", f"--run_dir={tmp_path}/r/r")
    with ForkedJob(CODE, words, ROOT, os.environ, tmp_path / "printed") as process:
        said = process.communicate(timeout=HUNG)
    assert process.returncode == 2
    assert said == ("", "seektune: /nowhere: no such file or folder; data.path must name one, a glob or a URL\n")
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_killed_worker_ends_the_job_with_its_signal(tmp_path: Path) -> None:
    with held_job(tmp_path, "--nproc-per-node=2") as process:
        victim = workers(process, tmp_path, 2)[1]
        victim.kill()
        _, said = process.communicate(timeout=HUNG)
    assert process.returncode == 1
    assert said == (
        "seektune: rank 1 was killed by SIGKILL (out of memory?); the other workers were stopped; "
        f"the same command with --run_dir={tmp_path}/run resumes from the last checkpoint\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "waiting"), [("all", 2), (0, 1)])
def test_a_request_to_stop_ends_with_75(tmp_path: Path, rank: int | str, waiting: int) -> None:
    """Also where one rank still reads rows, and the other waits for it with a signal pending."""
    with held_job(tmp_path, "--nproc-per-node=2", rank=rank) as process:
        workers(process, tmp_path, waiting)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=HUNG)
    assert process.returncode == 75, said
    assert said.startswith("seektune: stopped by SIGTERM before the first step; nothing had to be saved")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_one_process_with_restarts_has_a_launcher_too(tmp_path: Path) -> None:
    with held_job(tmp_path, "--max-restarts=1") as process:
        first = workers(process, tmp_path, 1)[0]
        (tmp_path / "held-0").unlink()
        first.kill()
        told = process.wait_for("; restart 1 of 1, from the last checkpoint\n", error=True)
        second = workers(process, tmp_path, 1)[0]
        assert second.pid != first.pid
        second.kill()
        _, said = process.communicate(timeout=HUNG)
    assert process.returncode == 1
    assert said.removeprefix(told).startswith("seektune: rank 0 was killed by SIGKILL")
