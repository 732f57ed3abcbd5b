"""Commands that decode on several processes: the same output, and an end of all processes whatever ends one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from seektune.exit_codes import FAILURE, RESUME_ME, USER_MISTAKE
from seektune.io.jsonl import read_jsonl
from tests.patience import HUNG
from tests.places import ROOT
from tests.run_cli import CODE, seektune, worker_processes

from ..conftest import Build

Job = subprocess.Popen[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, toy_model: Build) -> Path:
    made = tmp_path_factory.mktemp("jobs")
    toy_model(torch.float32, vocab_size=512).save_pretrained(made / "trained", "fp32")
    rows = [{"prompt": "The man " * (1 + i)} for i in range(5)]
    (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (made / "notes.txt").write_text("The man picks up the ball and throws it. " * 20, encoding="utf-8")
    return made


def test_generate_and_eval_on_two_processes_write_what_one_writes(place: Path):
    prompts = place / "prompts.jsonl"
    for world in (1, 2):
        words = ("generate", place / "trained", "--file", prompts, "--out", place / f"{world}.jsonl", "--logprobs")
        done = worker_processes(*map(str, words), "--temperature=0", "--max-new-tokens=6", world=world)
        assert [(each.returncode, each.stdout) for each in done] == [(0, "")] * world
        assert [each.stderr for each in done] == ["5 of 5 prompts\n", ""][:world]
    one, two = ([row for _, row in read_jsonl(place / f"{world}.jsonl")] for world in (1, 2))
    here, there = ([token.pop("logprob") for row in rows for token in row["tokens"]] for rows in (one, two))
    assert there == pytest.approx(here, abs=2e-5)
    assert two == one
    scores = []
    for world in (1, 2):
        words = ("eval", place / "trained", "--task=perplexity", "--data", place / "notes.txt", "--length=32", "--json")
        done = worker_processes(*map(str, words), world=world)
        assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * world
        assert [each.stdout for each in done[1:]] == [""] * (world - 1)
        scores.append(json.loads(done[0].stdout))
    assert scores[1].pop("losses") == pytest.approx(scores[0].pop("losses"), rel=1e-5)
    assert scores[1]["n"] == scores[0]["n"] > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ep=0",), "--ep=0 must be a positive number or auto"),
        (("--nproc-per-node=0",), "--nproc-per-node=0 must be a positive number, gpu or auto"),
        (("--nnodes=2",), "--nnodes=2 needs --rdzv-endpoint=HOST:PORT: node 0 and a free port on it"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_starts(place: Path, words: tuple[str, ...], said: str):
    done = seektune("generate", place / "trained", "--prompt=The", *words)
    assert (done.returncode, done.stderr) == (USER_MISTAKE, f"seektune: {said}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("generate", "--prompt=The", "--ep=3"),
            "--ep=3 must divide the 2 processes and the model's 8 experts; --ep=2 does",
        ),
        (
            ("generate", "--prompt=The", "--speculative"),
            "--speculative runs on one process only; leave --nproc-per-node out",
        ),
        (("eval", "--task=drafter"), "--task drafter runs on one process only; leave --nproc-per-node out"),
    ],
)
def test_every_process_refuses_what_several_cannot_do(place: Path, words: tuple[str, ...], said: str):
    command, *options = words
    done = worker_processes(command, str(place / "trained"), *options, world=2)
    assert [(each.returncode, each.stderr) for each in done] == [(USER_MISTAKE, f"seektune: {said}\n")] * 2


@contextmanager
def job(*words: str | Path) -> Iterator[Job]:
    """A command on two processes, with a launcher."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, *map(str, words), "--nproc-per-node=2"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as made:  # type: ignore[call-overload]
        try:
            yield made
        finally:
            made.kill()


def wait_for(process: Job, text: str) -> None:
    """Until the job prints a text."""
    assert process.stdout is not None
    heard = ""
    while not heard.endswith(text):
        letter = process.stdout.read(1)
        assert letter, heard
        heard += letter


@pytest.mark.slow
def test_a_process_that_dies_ends_all_and_is_named(place: Path):
    with job("generate", place / "trained", "--prompt=The", "--max-new-tokens=100000") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        children = sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)
        children[1].kill()
        _, said = process.communicate(timeout=HUNG)
    assert process.returncode == FAILURE
    assert "rank 1 was killed by SIGKILL (out of memory?); the other workers were stopped; run the same command" in said
    assert not any(child.is_running() for child in children)


@pytest.mark.slow
def test_a_chat_reads_the_terminal_and_ends_on_a_signal(place: Path):
    with job("chat", place / "trained", "--max-new-tokens=100000") as process:
        assert process.stdin is not None
        wait_for(process, "> ")
        process.stdin.write("2+2?\n")
        process.stdin.flush()
        wait_for(process, " ")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=HUNG)
    assert (process.returncode, said) == (RESUME_ME, "seektune: stopped by SIGINT; run the same command again\n")
