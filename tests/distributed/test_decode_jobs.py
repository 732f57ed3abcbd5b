"""Commands that decode on several processes: the same output, and an end of all processes whatever ends one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
import torch

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.exit_codes import FAILURE, RESUME_ME, USER_MISTAKE
from seektune.generate.detokenize import generate_all
from seektune.generate.sampling_params import GREEDY
from seektune.generate.session import GenerateOptions, LoadOptions, Session
from seektune.io.jsonl import read_jsonl, read_records
from seektune.lora.files import save_adapter
from seektune.lora.initialize import initial_a
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.state import adapter_state
from tests.launch.forked import ForkedJob
from tests.patience import HUNG
from tests.places import ROOT, TINY
from tests.run_cli import CODE, seektune, without_room, worker_processes

from ..checkpoint.reader import raw
from ..conftest import DSPARK, Build
from ..generate.drafting import sometimes_right

Job = subprocess.Popen[str]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, toy_model: Build) -> Path:
    made = tmp_path_factory.mktemp("jobs")
    toy_model(torch.float32, vocab_size=512).save_pretrained(made / "trained", "fp32")
    model = toy_model(torch.float32, vocab_size=512)
    adapt(model, ["layers.1.ffn.experts.w1", "layers.2.attn.wq_a"], AdapterShape(rank=2, alpha=64.0), "own")
    with torch.no_grad():
        for name, x in adapter_state(model).items():
            x.copy_(initial_a(name, x.shape, 1))
    save_adapter(model, made / "adapter", adapter="own")
    rows = [{"prompt": "The man " * (1 + i)} for i in range(5)]
    (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (made / "notes.txt").write_text("The man picks up the ball and throws it. " * 20, encoding="utf-8")
    return made


@pytest.mark.slow
def test_generate_and_eval_on_two_processes_write_what_one_writes(place: Path):
    """Two draft, one does not."""
    prompts = place / "prompts.jsonl"
    layouts = {"--ep=1": (1, False), "--ep=2": (2, True), "--pp=2": (2, False)}
    for layout, (world, drafts) in layouts.items():
        words = ["generate", place / "trained", "--file", prompts, "--out", place / f"{layout}.jsonl", "--logprobs"]
        words += ["--temperature=0", "--max-new-tokens=6", layout] + ["--speculative"] * drafts
        done = worker_processes(*map(str, words), world=world)
        assert [(each.returncode, each.stdout) for each in done] == [(0, "")] * world
        assert without_room(done[0].stderr).startswith("5 of 5 prompts\n")
        assert ("drafts accepted: " in done[0].stderr) == drafts
        assert [each.stderr for each in done[1:]] == [""] * (world - 1)
    one, *several = ([row for _, row in read_jsonl(place / f"{layout}.jsonl")] for layout in layouts)
    here, *there = ([token.pop("logprob") for row in rows for token in row["tokens"]] for rows in (one, *several))
    assert there == [pytest.approx(here, abs=2e-5)] * 2
    assert several == [one] * 2
    scores = []
    for layout, (world, _) in layouts.items():
        words = ["eval", place / "trained", "--task=perplexity", "--data", place / "notes.txt", "--length=32", "--json"]
        done = worker_processes(*map(str, words), layout, world=world)
        assert [(each.returncode, without_room(each.stderr)) for each in done] == [(0, "")] * world
        assert [each.stdout for each in done[1:]] == [""] * (world - 1)
        scores.append(json.loads(done[0].stdout))
    here, *there = (each.pop("losses") for each in scores)
    assert there == [pytest.approx(here, rel=1e-5)] * 2
    assert scores[0]["n"] == scores[1]["n"] == scores[2]["n"] > 1
    counted = []
    for world in (1, 2):
        words = ["eval", place / "trained", "--task=drafter", "--data", prompts, "--json", "--limit=3"]
        done = worker_processes(*map(str, words), world=world)
        assert [(each.returncode, without_room(each.stderr)) for each in done] == [(0, "")] * world
        counted.append(json.loads(done[0].stdout))
    assert counted[1] == counted[0]
    assert counted[0]["n"] == 3


@pytest.mark.slow
def test_a_training_run_that_spreads_only_experts_or_layers_decodes_as_one_process(place: Path, toy_model: Build):
    """With the DSpark stages of its base, of which each process loads its experts for measuring drafts."""
    sizes = {"vocab_size": 512, "hidden_size": 64, "moe_intermediate_size": 32, "dspark_markov_rank": 64}
    base = sometimes_right(toy_model(torch.float32, drafter=True, **DSPARK | sizes))
    base.save_pretrained(place / "base", "released")
    rows = write_hellaswag(place / "rows", 12, 4)
    (place / "own.jsonl").write_text('{"prompt": "The man", "answer": "a"}\n', encoding="utf-8")
    answers = f"{{name: answers, every: 1, path: {place}/own.jsonl, metric: contains, max_new_tokens: 9}}"
    samples = "{name: samples, every: 1, max_new_tokens: 6, prompts: [The man, A]}"
    layouts = {"one": {"dp_replicate": 1}, "experts": {"dp_replicate": 2, "ep_size": 2}, "layers": {"pp_size": 2}}
    for name, layout in layouts.items():
        world = max(layout.values())
        words = [
            "train",
            str(TINY),
            "--model.preset=null",
            f"--model.weights={place}/base",
            "--loss.mtp_weight=0",
            f"--data.path={rows}",
            f"--run_dir={place / name}",
            "--steps=2",
        ]
        tasks = f"{answers},{samples}" + (",drafter" if "pp_size" not in layout else "")
        words += [f"--evaluate.tasks=[{tasks}]", "--logging.to=[]", "--checkpoint.every=null"]
        words += [f"--parallel.{key}={size}" for key, size in layout.items()] + ["--parallel.dp_shard=1"]
        done = worker_processes(*words, world=world)
        assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * world
        assert "does not run" not in done[0].stdout
    for file in ("samples.jsonl", "evaluations.jsonl"):
        one, *several = (read_records(place / name / file) for name in layouts)
        assert several == [one] * 2
        assert one
    one, experts, layers = (json.loads((place / name / "evaluation.json").read_text()) for name in layouts)
    assert experts == one
    assert one.pop("drafter")["before"]["accepted_length"]["value"] > 1.5
    assert layers == one


def train_drafter(base: Path, rows: Path, folder: Path, world: int, **parallel: int) -> None:
    """A run of a few steps that trains the stages of a model whose other weights stay as released."""
    words = f"""train {TINY} --model.preset=null --model.weights={base} --model.quantized=true --data.path={rows}
        --run_dir={folder} --steps=2 --checkpoint.every=1 --loss.mtp_weight=0 --train.drafter=true
        --train.drafter_answers=9 --train.drafter_answer_tokens=12 --train.drafter_anchors=16 --batch.micro_size=2
        --evaluate.tasks=null --evaluate.limit=8 --evaluate.every=null --logging.to=[]""".split()
    words += [f"--parallel.{key}={size}" for key, size in parallel.items()]
    done = worker_processes(*words, world=world)
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * world


@pytest.mark.slow
def test_a_drafter_that_processes_train_together_is_that_of_one(tmp_path: Path, toy_model: Build):
    """Backbones keep their bytes, and a run that resumes ends in the same ones. FSDP leaves drafting unmeasured."""
    base = tmp_path / "base"
    rows = write_hellaswag(tmp_path / "rows", 12, 4)
    sizes = {"vocab_size": 512, "hidden_size": 64, "moe_intermediate_size": 32, "dspark_markov_rank": 64}
    sometimes_right(toy_model(torch.float32, drafter=True, **DSPARK | sizes)).save_pretrained(base, "released")
    runs = {name: tmp_path / name for name in ("one", "spread", "cut")}
    train_drafter(base, rows, runs["one"], 1)
    train_drafter(base, rows, runs["spread"], 2, dp_replicate=2, dp_shard=1, ep_size=2)
    train_drafter(base, rows, runs["cut"], 2, dp_shard=2)
    kept = raw(base)
    one, *others = (raw(run / "model") for run in runs.values())
    for found in (one, *others):
        assert found.keys() == {name for name in kept if not (name.startswith("mtp.") and name.endswith(".scale"))}
        assert all(found[name] == kept[name] for name in found if not name.startswith("mtp."))
    losses = [[line["loss"] for line in read_records(run / "metrics.jsonl") if "loss" in line] for run in runs.values()]
    assert len(losses[0]) == 2
    for run, found in zip(runs.values(), losses, strict=True):
        assert (run / "own_answers.jsonl").read_bytes() == (runs["one"] / "own_answers.jsonl").read_bytes()
        assert found == pytest.approx(losses[0], rel=1e-4)
    scores = [json.loads((run / "evaluation.json").read_text()) for run in runs.values()]
    assert scores[1]["drafter"] == scores[0]["drafter"]
    assert "drafter" not in scores[2]
    ended = (runs["spread"] / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(runs["spread"] / "model")
    shutil.rmtree(runs["spread"] / "checkpoints" / "step-000002")
    train_drafter(base, rows, runs["spread"], 2, dp_replicate=2, dp_shard=1, ep_size=2)
    assert (runs["spread"] / "model" / "model.safetensors").read_bytes() == ended


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ep=0",), "--ep=0 must be a positive number or auto"),
        (("--ep=4",), "--ep=4 needs 4 processes, or a multiple: --nproc-per-node=4"),
        (("--pp=2", "--ep=2"), "--pp=2 needs 4 processes, or a multiple: --nproc-per-node=4"),
        (("--nproc-per-node=0",), "--nproc-per-node=0 must be a positive number, gpu or auto"),
        (("--nnodes=2",), "--nnodes=2 needs --rdzv-endpoint=HOST:PORT: node 0 and a free port on it"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_starts(place: Path, words: tuple[str, ...], said: str):
    done = seektune("generate", place / "trained", "--prompt=The", *words)
    assert (done.returncode, done.stderr) == (USER_MISTAKE, f"seektune: {said}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("generate", "--prompt=The", "--ep=3"),
            "--ep=3 must divide the 2 processes and the model's 8 experts; --ep=2 does",
        ),
        (
            ("generate", "--prompt=The", "--pp=3"),
            "--pp=3 must divide the 2 processes and be at most the model's 4 layers; --pp=2 does",
        ),
        (
            ("generate", "--prompt=The", "--speculative", "--pp=2"),
            "--speculative does not work with --pp=2; leave one of them out",
        ),
        (("generate", "--prompt=The", "--cuda-graphs"), "--cuda-graphs does not work with 2 processes; leave it out"),
    ],
)
def test_every_process_refuses_what_several_cannot_do(place: Path, words: tuple[str, ...], said: str):
    command, *options = words
    done = worker_processes(command, str(place / "trained"), *options, world=2)
    assert [(each.returncode, each.stderr) for each in done] == [(USER_MISTAKE, f"seektune: {said}\n")] * 2


@pytest.mark.slow
def test_a_dry_run_says_what_each_stage_would_hold_and_loads_nothing(place: Path):
    done = seektune("serve", place / "trained", "--dry-run", "--world-size=4", "--pp=2", "--gpu=h100-80gb")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == "4 x h100-80gb: pp 2 x dp 2 (2 copies) x ep 2, 80.00 GB of memory each"
    assert [line for line in lines if line.startswith("rank")] == ["rank 0: layers 0 to 2", "rank 2: layers 3 to 3"]
    assert ["MTP block" in line for line in lines if line.startswith("  weights: ")] == [False, True]
    assert sum("tokens of context fit beside the weights of each rank" in line for line in lines) == 2
    done = seektune("generate", "some/where", "--dry-run")
    assert done.returncode == USER_MISTAKE
    assert "plans and dry runs do not use the network, and some/where is not a folder" in done.stderr
    done = seektune("generate", "flash", "--prompt=The", "--world-size=4")
    assert (done.returncode, done.stderr) == (USER_MISTAKE, "seektune: --world-size and --gpu need --dry-run\n")


@contextmanager
def job(*words: str | Path) -> Iterator[Job]:
    """A command on two processes, with a launcher, each a new interpreter."""
    command = [sys.executable, "-c", CODE, *map(str, words), "--nproc-per-node=2"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes) as made:  # type: ignore[call-overload]
        try:
            yield made
        finally:
            made.kill()


def wait_for(process: Job, text: str) -> str:
    """What a job prints until it prints a text."""
    assert process.stdout is not None
    heard = ""
    while not heard.endswith(text):
        letter = process.stdout.read(1)
        assert letter, heard
        heard += letter
    return heard


def answer(address: str, model: str) -> str:
    """A greedy completion by a server."""
    body = {"model": model, "prompt": "The man", "max_tokens": 6, "temperature": 0}
    with posted(address, body) as response:
        return str(json.load(response)["choices"][0]["text"])


def posted(address: str, body: dict[str, Any]) -> HTTPResponse:
    request = Request(f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    response = urlopen(request, timeout=HUNG)
    assert isinstance(response, HTTPResponse)
    return response


STREAMING, WAITING = 8, 24
"""Clients of a server on which a process dies."""


def unanswered(address: str, body: dict[str, Any]) -> bool:
    """Whether a request ends without a whole response."""
    try:
        with posted(address, body) as response:
            return b"[DONE]" not in response.read()
    except (OSError, HTTPException):
        return True


def wait_for_queue(address: str) -> None:
    """Until as many requests run and wait as were sent."""
    end = time.monotonic() + HUNG
    found: dict[str, int] = {}
    while (found.get("running"), found.get("waiting")) != (STREAMING, WAITING):
        assert time.monotonic() < end, found
        with urlopen(f"{address}/health", timeout=HUNG) as response:
            found = json.load(response)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["--ep=2", "--pp=2"])
def test_a_server_answers_as_one_process_and_ends_where_a_process_dies(place: Path, layout: str):
    expected = {}
    for name, adapter in (("trained", None), ("adapter", place / "adapter")):
        setting = GenerateOptions(6, GREEDY, reading=LoadOptions("fp32", adapter=adapter))
        session = Session(str(place / "trained"), setting)
        (text,), _ = generate_all(session.model, session.tokenizer, session.requests(session.text("The man")))
        expected[name] = text.text
    words = ("serve", str(place / "trained"), f"--adapter={place}/adapter", "--port=0", layout, "--nproc-per-node=2")
    words = (*words, f"--max-num-seqs={STREAMING}")
    with ForkedJob(CODE, words, ROOT, ENVIRONMENT, place / "printed") as process:
        address = re.findall(r"http://[\d.:]+", process.wait_for("stops\n"))[0]
        assert {name: answer(address, name) for name in expected} == expected
        assert len(set(expected.values())) == 2
        body = {"model": "trained", "prompt": "The man", "max_tokens": 1500, "stream": True, "temperature": 0}
        with ExitStack() as clients, ThreadPoolExecutor(WAITING) as waiting:
            responses = [clients.enter_context(posted(address, body)) for _ in range(STREAMING)]
            for response in responses:
                response.readline()
            queued = [waiting.submit(unanswered, address, body) for _ in range(WAITING)]
            wait_for_queue(address)
            children = sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)
            children[1].kill()
            for response in responses:
                with suppress(OSError, HTTPException):
                    response.read()
            assert all(each.result(HUNG) for each in queued)
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
    assert (process.returncode, without_room(said)) == (
        RESUME_ME,
        "seektune: stopped by SIGINT; run the same command again\n",
    )
