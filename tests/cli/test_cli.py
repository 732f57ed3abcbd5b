"""The command line: quick, torch-free help; one line and the right exit code for every mistake and failure."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import seektune
from seektune.cli.errors import explain
from seektune.cli.train import split_args
from tests import places, run_cli
from tests.patience import HUNG
from tests.places import ROOT

FLASH = str(places.FLASH)
TINY = str(places.TINY)
Answer = subprocess.CompletedProcess[str]


def run(door: str, *words: str, **settings: str) -> Answer:
    """A console script as installed, run from the checkout."""
    return python(
        f"import sys; sys.argv[0] = {door!r}; from seektune.cli import {door} as door; door()", words, settings
    )


def python(code: str, words: tuple[str, ...] = (), settings: dict[str, str] | None = None) -> Answer:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(settings or {})}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=HUNG)


def refused(answer: Answer, code: int = 2) -> str:
    """The one line of an answer that is a mistake."""
    assert answer.returncode == code, answer.stderr
    assert answer.stdout == ""
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert len(answer.stderr) < 600
    return answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("train", "--help"), ("schema", "--help")])
def test_help_teaches(words: tuple[str, ...]) -> None:
    answer = run("main", *words)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "seektune" in answer.stdout
    assert "examples/" in answer.stdout or "schema" in answer.stdout


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["convert", "verify", "inspect"])
def test_help_of_checkpoint_verbs_shows_a_call(verb: str) -> None:
    answer = run("main", verb, "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"\n    seektune {verb} " in answer.stdout


def test_help_loads_few_modules_and_no_torch() -> None:
    """What takes time before help is shown is importing: torch alone brings 1,500 modules, and seconds."""
    code = (
        "import sys, atexit; from seektune.cli import main;"
        "atexit.register(lambda: print(len(sys.modules), 'torch' in sys.modules, file=sys.stderr)); main()"
    )
    count, torch = python(code, ("--help",)).stderr.split()
    assert torch == "False"
    assert int(count) < 300


@pytest.mark.slow
def test_a_mistake_in_a_recipe_is_answered_without_torch() -> None:
    code = (
        "import sys; from seektune.recipe.load import load_recipe, schema; schema();"
        f"load_recipe({FLASH!r}); print('torch' in sys.modules)"
    )
    assert python(code).stdout == "False\n"


@pytest.mark.slow
def test_the_package_offers_its_names_without_importing_torch() -> None:
    code = "import sys, seektune; print(seektune.DeepseekV4Config.preset('tiny').vocab_size, 'torch' in sys.modules)"
    assert python(code).stdout == "4096 False\n"
    assert seektune.load_recipe(TINY).steps > 0
    assert set(seektune.__all__) >= {"DeepseekV4Config", "DeepseekV4ForCausalLM", "load_recipe"}
    assert seektune.DeepseekV4ForCausalLM.__name__ == "DeepseekV4ForCausalLM"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = seektune.nothing


@pytest.mark.parametrize("door", ["main", "automodel"])
def test_the_version_is_the_projects(door: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert run(door, "--version").stdout == f"seektune {project['version']}\n"
    assert seektune.__version__ == project["version"]


@pytest.mark.slow
def test_schema_prints_json() -> None:
    answer = run("main", "schema")
    assert answer.returncode == 0
    assert "optimizer" in json.loads(answer.stdout)["properties"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["--wrong"], "No such option: --wrong"),
        (["train"], "no recipe given"),
        (["train", "none.yaml"], "none.yaml does not exist"),
        (["train", TINY, TINY], "one recipe at a time"),
        (["train", TINY, "steps=3"], "and steps=3; write overrides as --steps=3\n"),
        (["train", TINY, "--steps"], "--steps needs a value"),
        (["train", TINY, "-x"], "-x is not an override"),
        (["train", TINY, "--steps=" + "9" * 100_000], "must be a whole number"),
        (["train", "--nproc-per-node=many", TINY], "--nproc-per-node"),
        (["train", "--nproc-per-node=0", TINY], "--nproc-per-node"),
        (["train", "a\nb\x1b[31m.yaml"], "the path 'a\\nb\\x1b[31m.yaml' holds a control character"),
        (["train", "--batch.pack", TINY], "deepseek_v4_tiny_hellaswag.yaml as its value; write --batch.pack=VALUE"),
        (["train", TINY, "--run_dir=$HOME/runs/x"], "run_dir: the path $HOME/runs/x: $ is not expanded here"),
        (["train", TINY, "--run_dir=~nobody0/x"], "run_dir: the path ~nobody0/x: the user nobody0 does not exist"),
        (["convert", "~nobody0/x", "y", "--to=bf16"], "the user nobody0 does not exist"),
        (["convert", "x", "$HOME/y", "--to=bf16"], "$ is not expanded here"),
        (["plan", TINY, "--html=~nobody0/x"], "the user nobody0 does not exist"),
        (["schema", "extra"], "extra"),
        (["adapter", "export", "a", "b", "--to=sglang"], "Invalid value for '--to': 'sglang' is not one of 'vllm'"),
        (["generate", "m", "--prompt=x", "--reasoning-effort=high"], "no effect without --thinking"),
        (["verify-serving", "http://u:p@h", "m"], "url holds a user or password, which is not sent"),
        (["eval", "m", "--task=t", "--packed"], "it is now called --quantized"),
        (["generate", "m", "--rows=2"], "it is now called --max-num-seqs"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_take_one_line_and_exit_2(words: list[str], said: str) -> None:
    assert said in refused(run("main", *words))


def test_words_may_come_in_any_order() -> None:
    expected = ("r.yaml", ["--steps", "20", "--seed=-1", "--optimizer.lr", "1e-4"])
    assert split_args(["--steps", "20", "r.yaml", "--seed=-1", "--optimizer.lr", "1e-4"]) == expected
    assert split_args(["r.yaml", "--seed", "-1"]) == ("r.yaml", ["--seed", "-1"])


FAKE = """
import sys, types
def train(recipe, name, notes, cache_dir, slot):
    {body}
sys.modules["seektune.workflows.train"] = types.SimpleNamespace(train=train)
from seektune.cli import main
main()
"""


def train_that(body: str, **settings: str) -> Answer:
    return run_cli.python(FAKE.format(body=body), "train", TINY, "--steps", "9", **settings)


@pytest.mark.slow
def test_train_gets_recipe_name_and_notes() -> None:
    answer = train_that("print(recipe.steps, recipe.model.preset, name, len(notes))")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "9 tiny deepseek_v4_tiny_hellaswag 1\n"


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise ValueError('row 3 has\\nno endings')", 2, "seektune: row 3 has no endings\n"),
        ("open('/nowhere/x', 'w')", 1, "seektune: /nowhere/x: No such file or directory\n"),
        (
            "raise OSError(28, 'No space left on device', 'm.safetensors')",
            1,
            "seektune: m.safetensors: No space left",
        ),
        ("raise OSError('the Hub cannot be reached')", 1, "seektune: the Hub cannot be reached\n"),
        ("raise FloatingPointError('loss is nan at step 3')", 1, "seektune: loss is nan at step 3\n"),
        ("raise KeyboardInterrupt", 1, "seektune: interrupted by Ctrl-C\n"),
        ("raise MemoryError", 1, "seektune: out of memory; lower batch.micro_size or batch.length (MemoryError)\n"),
        ("raise RuntimeError('CUDA out of memory. Tried')", 1, "out of memory; lower batch.micro_size"),
        (
            "raise RuntimeError('shapes\\ndiffer')",
            1,
            "RuntimeError: shapes differ (SEEKTUNE_TRACEBACK=1",
        ),
        ("assert False", 1, "AssertionError (SEEKTUNE_TRACEBACK=1 shows where)\n"),
        ("raise RuntimeError('x' * 10_000)", 1, "SEEKTUNE_TRACEBACK=1"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.slow
def test_failures_take_one_line_and_their_exit_code(body: str, code: int, said: str) -> None:
    assert said in refused(train_that(body), code)


@pytest.mark.slow
def test_a_traceback_is_shown_on_demand() -> None:
    answer = train_that("raise RuntimeError('deep')", SEEKTUNE_TRACEBACK="1")
    assert "Traceback" in answer.stderr
    assert answer.returncode == 1


@pytest.mark.slow
def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    code = "from seektune.cli import main; main()"
    shell = f"{sys.executable} -c '{code}' schema | head -1"
    answer = subprocess.run(shell, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=HUNG)
    assert (answer.stdout, answer.stderr) == ("{\n", "")


@pytest.mark.slow
def test_ctrl_c_takes_one_line_and_exit_1() -> None:
    code = FAKE.format(body="print('ready', flush=True); import time; time.sleep(60)")
    # a shell starts what it runs in the background with Ctrl-C ignored, and children inherit that
    hearing = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    command = [sys.executable, "-c", hearing, sys.executable, "-c", code, "train", TINY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=HUNG)
    assert (process.returncode, said) == (1, "seektune: interrupted by Ctrl-C\n")


@pytest.mark.slow
def test_a_closed_standard_output_does_not_trace() -> None:
    shell = f"{sys.executable} -c 'from seektune.cli import main; main()' schema >&-"
    answer = subprocess.run(shell, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=HUNG)
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_standard_output_is_a_failure() -> None:
    shell = f"{sys.executable} -c 'from seektune.cli import main; main()' schema > /dev/full"
    answer = subprocess.run(shell, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=HUNG)
    assert "No space left on device" in refused(answer, 1)


@pytest.mark.parametrize("make", [MemoryError, KeyboardInterrupt, RuntimeError, OSError, ValueError])
def test_every_error_has_a_code(make: Callable[[], BaseException]) -> None:
    code, _ = explain(make())
    assert code == (2 if make is ValueError else 1)
