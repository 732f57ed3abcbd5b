"""CONTRIBUTING.md, AGENTS.md and SECURITY.md: what they name exists, and what they promise of the sources holds."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from seektune.serve.config import ServeConfig
from seektune.serve.limits import Limits
from tests.run_cli import ROOT

PAGES = ("CONTRIBUTING.md", "AGENTS.md", "SECURITY.md")
PLACE = re.compile(r"`((?:seektune|tests|docs|examples|bench|\.ci)(?:/[\w./-]*)?|pyproject\.toml)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@cache
def sources() -> list[ast.Module]:
    return [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "seektune").rglob("*.py")]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = [*PLACE.findall(text_of(page)), *LINK.findall(text_of(page))]
    assert len(named) > 10 or page == "SECURITY.md"
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    for target in set(re.findall(r"(?:`|\n)make ([a-z-]+)", text_of(page))):
        assert f"\n{target}:" in text_of("Makefile"), target


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_are_named_exist(page: str) -> None:
    for script in re.findall(r"`python ([\w/]+\.py)`", text_of(page)):
        assert (ROOT / script).is_file(), script


def test_assistants_read_twenty_lines_that_contributors_read_too() -> None:
    lines = [line for line in text_of("AGENTS.md").splitlines() if line]
    assert len(lines) <= 22
    contributing = set(PLACE.findall(text_of("CONTRIBUTING.md")))
    linked = {*LINK.findall(text_of("CONTRIBUTING.md")), "CHANGELOG.md"}
    assert set(PLACE.findall(text_of("AGENTS.md"))) <= contributing | linked


def test_names_that_are_given_with_a_file_are_in_it() -> None:
    page = text_of("CONTRIBUTING.md")
    pairs = re.findall(r"`(\w+)` (?:of|in)\s+`(seektune/[\w/]+\.py)`", page)
    assert len(pairs) == 2
    for name, file in pairs:
        assert f"class {name}" in text_of(file)


def called(tree: ast.AST) -> set[str]:
    """Names of what a module calls, with the module for attributes: `torch.load`."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {ast.unparse(each) for each in calls}


@pytest.mark.slow
def test_nothing_is_unpickled_and_no_code_of_others_is_run() -> None:
    imported = {
        name.name
        for tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([*node.names] if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    calls = set().union(*map(called, sources()))
    assert not calls & {"torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "exec", "np.load"}
    # the planner's own formulas
    evaluating = [tree for tree in sources() if "eval" in called(tree)]
    assert len(evaluating) <= 1
    assert not any(
        keyword.arg in ("trust_remote_code", "shell")
        for tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
    )


def test_the_server_is_local_and_bounded_unless_told_otherwise() -> None:
    limits = Limits()
    assert min(limits.max_model_len, limits.max_num_seqs, limits.max_queued_requests, limits.max_body) > 0
    assert min(limits.request_timeout, limits.client_timeout) > 0
    assert ServeConfig.host == "127.0.0.1"


def test_version_control_holds_one_copy_of_each_recipe() -> None:
    done = subprocess.run(["git", "ls-files", "*.yaml"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    recipes = [Path(name).name for name in done.stdout.splitlines() if "deepseek" in name]
    assert len(recipes) == len(set(recipes)) > 3
