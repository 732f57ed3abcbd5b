"""Every command of README and docs is run by a test or says which hardware it needs; what they name exists."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from seektune.cli.errors import explain
from seektune.data.datasets.synthetic import write_hellaswag
from seektune.launch.job import LaunchConfig
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.recipe.errors import known_keys
from seektune.recipe.recipe import Recipe
from tests.places import ROOT

from .guides import CONSOLE_SCRIPTS, FLASH, PAGES, Command, commands, own_test, text_of

SETTING_UP = ("make", "pip", "uv", "python3", "source")
"""First words of commands that set up what tests run in; `make demo` and `make test` are what CI runs."""
EVERY = [command for page in PAGES for command in commands(page)]
PLAIN = [each for each in EVERY if not each.hardware and each.words[0] not in SETTING_UP]
OWN = {each.words for each in PLAIN if own_test(each.page).exists()}
"""Commands that a page's own test runs."""
HERE = {each.words: each for each in PLAIN if each.words not in OWN}
"""Commands that `test_the_commands_of_the_guides_run` runs, by their words."""
STARTS = [
    each
    for each in EVERY
    if each.hardware and (each.words[0] == "automodel" or each.words[:2] == ("seektune", "train"))
]
"""Jobs for GPUs, which tests read but do not start."""


def job_of(command: Command, launched: list[LaunchConfig]) -> LaunchConfig:
    """What a command would start, on a machine with 8 GPUs."""
    door, *words = command.words
    typer.main.get_command(CONSOLE_SCRIPTS[door])(list(words), standalone_mode=False)()
    (job,) = launched
    return job


# --- commands


def test_pages_with_a_test_of_their_own_are_read_by_it() -> None:
    own = [page for page in PAGES if own_test(page).exists() and commands(page)]
    assert len(own) >= 7
    for page in own:
        source = own_test(page).read_text(encoding="utf-8")
        assert Path(page).name in source
        assert any(reader in source for reader in ("```", "commands(", "blocks(")), (
            "its test reads the blocks of the page"
        )


@pytest.mark.parametrize("page", PAGES)
def test_a_command_is_run_or_says_what_it_needs(page: str) -> None:
    """Doors are run, here or by the page's own test; whatever else is not marked cannot be."""
    strangers = [each.line for each in commands(page) if each in PLAIN and each.words[0] not in CONSOLE_SCRIPTS]
    assert not strangers or own_test(page).exists()
    for language, block in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        hidden = re.findall(rf"^(?:{'|'.join((*CONSOLE_SCRIPTS, *SETTING_UP))}) .*", block, re.MULTILINE)
        assert language == "sh" or not hidden, "commands belong into a block of sh"


@pytest.mark.usefixtures("any_memory")
@pytest.mark.parametrize("command", STARTS, ids=lambda each: f"{each.page}: {each.line[:60]}")
def test_what_needs_gpus_makes_its_job(command: Command, launched: list[LaunchConfig]) -> None:
    if FLASH in command.words and "--nnodes=16" not in command.words:
        with pytest.raises(ValueError, match=r"takes 128 processes or a multiple of that, but this job has 8"):
            job_of(command, launched)
        assert "16" in command.hardware or "128 GPUs" in command.hardware
        return
    job = job_of(command, launched)
    told = int(re.findall(r"(\d+) GPUs", command.hardware)[0])
    assert job.processes * job.nodes == told


@pytest.mark.parametrize(
    "command", [each for each in EVERY if each.words[0] in SETTING_UP], ids=lambda each: f"{each.page}: {each.line}"
)
def test_what_sets_up_names_what_is_there(command: Command) -> None:
    if command.words[0] == "make":
        done = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0
    extras = re.findall(r"\[(\w+)\]", command.line)
    assert all(f"\n{extra} = [" in text_of("pyproject.toml") for extra in extras)


@pytest.mark.slow
def test_the_commands_of_the_guides_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the pages, in one folder, each in this process: torch is loaded once."""
    assert 10 <= len(HERE) <= 40
    rows = write_hellaswag(tmp_path / "rows", 40, 6)
    (tmp_path / "notes.txt").write_text("The man picks up a red bucket and walks away.\n" * 9, encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The man"}\n', encoding="utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    small = [f"--data.path={rows}", "--steps=2", "--batch.global_size=2", "--batch.micro_size=2", "--evaluate.limit=2"]
    first = Command("", f"seektune train {TRAINED} --run_dir=runs/first")
    for command in [first, *HERE.values()]:
        door, *words = command.words
        if (door == "automodel" or words[0] == "train") and "--dry-run" not in words:
            words += small
        if words[0] in ("validate", "data"):
            words.append(small[0])
        if words[0] == "eval" and "hellaswag" in words:
            words += ["--data", str(rows)]
        if words[0] == "generate":
            words += ["--max-new-tokens", "4"]
        work = typer.main.get_command(CONSOLE_SCRIPTS[door])(words, standalone_mode=False)
        try:
            code = (work() or 0) if callable(work) else 0
        except Exception as error:
            raise AssertionError(f"{command.line}: {explain(error)}") from error
        # a plan may say that it does not fit
        assert code in ((0, 1) if words[0] == "plan" else (0,)), command.line
        if command is first:
            shutil.copytree("runs/first/model", "trained")
            shutil.copytree("runs/first/model", "FOLDER")
    assert (tmp_path / "exported" / "README.md").exists()
    assert json.loads((tmp_path / "merged" / "merge.json").read_text(encoding="utf-8"))["to"] == "bf16"
    shutil.rmtree("exported")
    model = DeepseekV4ForCausalLM.from_pretrained("trained", dtype=torch.float32, numerics="plain")
    ids = torch.tensor([[0, 300, 301, 302]])
    names: dict[str, Any] = {"input_ids": ids, "labels": ids, "documents": torch.tensor([[1, 1, 2, 0]])}
    for example in re.findall(r"```python\n(.*?)```", text_of("README.md"), re.DOTALL):
        exec(compile(example.replace("runs/NAME/model", "trained"), "README.md", "exec"), names)
    assert names["out"].logits.shape == (1, 4, model.config.vocab_size)


TRAINED = FLASH.replace("flash", "tiny")


# --- links, keys and files


def prose(page: str) -> str:
    """A page without its blocks."""
    return re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)


def slugs(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them and, for ours, mkdocs."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in slugs(file.read_text(encoding="utf-8")), target


def test_every_key_that_a_page_names_exists() -> None:
    keys = set(known_keys(Recipe))
    sections = "|".join({key.split(".")[0] for key in keys if "." in key} | {"pipeline"})
    others = {f"model.{name}" for name in dir(DeepseekV4ForCausalLM)}
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`", prose(page)):
            for key in re.findall(rf"(?:^|--)((?:{sections})\.[a-z_]+(?:\.[a-z_]+)*)(?=$|[ =:])", code):
                full = f"parallel.{key}" if key.startswith("pipeline.") else key
                assert full in keys | others or key.endswith(FILES), f"{page}: {key}"
        for command in commands(page):
            for key in re.findall(rf"--((?:{sections})\.[\w.]+)", command.line):
                assert key in keys, f"{page}: {key}"


FILES = (".json", ".jsonl", ".parquet", ".yaml", ".safetensors", ".py", ".md")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    rooms = "seektune|docs|tests|bench|examples|docker|planner|model|parallel|kernels"
    for path in re.findall(rf"`((?:{rooms})/[\w./-]+)`", text_of(page)):
        found = any((root / path).exists() for root in (ROOT, ROOT / "seektune"))
        # what a benchmark writes may not be measured yet
        assert found or (path.endswith(".json") and (ROOT / path).with_suffix(".py").exists()), path


# --- made pages


def made_by(script: str, function: str) -> dict[str, str]:
    """What a script of docs/ makes, by file name."""
    names: dict[str, Any] = {"__file__": str(ROOT / script), "__name__": "made"}
    exec(compile((ROOT / script).read_text(encoding="utf-8"), script, "exec"), names)
    make: Callable[[], dict[str, str]] = names[function]
    return make()


@pytest.mark.parametrize(("script", "function"), [("docs/render.py", "pages"), ("docs/images/pictures.py", "pictures")])
def test_made_files_are_what_their_script_makes(script: str, function: str) -> None:
    for name, text in made_by(script, function).items():
        file = (ROOT / script).parent / name
        assert file.read_text(encoding="utf-8") == text, f"{name} is old: run python {script}"


def test_the_reference_has_every_key() -> None:
    page = text_of("docs/recipes.md")
    assert all(f"`{key}`" in page for key in known_keys(Recipe))


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    (words,) = re.findall(r"^\t.* \$\(BIN\)/python (-m mkdocs build .*--strict.*)$", text_of("Makefile"), re.MULTILINE)
    command = [sys.executable, *words.split(), "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for file in tmp_path.rglob("*.html"):
        tag = r"<(?:script|link|img|iframe|source)[^>]*(?:src|href)=\"?(https?:)?//"
        loaded = re.findall(tag, file.read_text(encoding="utf-8"))
        assert loaded == [], file.name


# --- the verification card

CARD = yaml.safe_load(text_of("docs/verification.yaml"))
CLAIMS = CARD["claims"]
KEYS = {"id", "claim", "command", "measured", "unit", "bound", "source", "key", "where", "when", "status"}
COMPARE: dict[str, Callable[[float, float], bool]] = {">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_a_claim_is_what_its_source_says(claim: dict[str, Any]) -> None:
    assert claim.keys() <= KEYS
    assert claim["where"] in CARD["machines"]
    assert claim["status"] in ("verified", "missed", "not verified")
    if claim["status"] == "not verified":
        assert "measured" not in claim
        return
    assert {"measured", "source", "when"} <= claim.keys()
    source = ROOT / claim["source"]
    assert source.is_file()
    if isinstance(claim["measured"], str):
        assert source.name.startswith("test_")
        assert claim["status"] == "verified"
        return
    found: Any = json.loads(source.read_text(encoding="utf-8"))
    for step in claim["key"]:
        found = found[step]
    assert claim["measured"] == found
    if "bound" in claim:
        sign, limit = claim["bound"].split()
        assert (claim["status"] == "verified") is COMPARE[sign](found, float(limit))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_a_claim_can_be_shown(claim: dict[str, Any]) -> None:
    first, *words = claim["command"].split()
    if first == "pytest":
        assert all((ROOT / word).exists() for word in words)
    elif first == "make":
        assert all(f"\n{word}: " in text_of("Makefile") for word in words)
    elif first == "python":
        assert (ROOT / words[0]).exists()
    else:
        assert first in (*CONSOLE_SCRIPTS, "vllm", "python3")
        assert all((ROOT / word).exists() for word in words if word.endswith(".yaml"))


def test_the_planners_extremes_are_those_of_all_its_cases() -> None:
    ratios = [case["ratio"] for case in json.loads(text_of("bench/plan.json"))["alone"]]
    said = {claim["id"]: claim.get("measured") for claim in CLAIMS}
    assert (said["plan-activations-lowest"], said["plan-activations-highest"]) == (min(ratios), max(ratios))


def test_claims_have_names_of_their_own() -> None:
    assert len({claim["id"] for claim in CLAIMS}) == len(CLAIMS)
