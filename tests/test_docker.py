"""The container's files are clean and hold what they promise; no engine runs here."""

import re
import subprocess
import sys
import tomllib

import yaml

from .workflows.door import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def hadolint(text: str) -> tuple[int, str]:
    done = subprocess.run([f"{sys.prefix}/bin/hadolint", "-"], input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_hadolint_is_content() -> None:
    assert hadolint(TEXT) == (0, "")
    assert hadolint(TEXT.replace("FROM nvidia/cuda:${CUDA}-base-ubuntu${UBUNTU}", "FROM nvidia/cuda"))[0] == 1


def test_it_is_pinned_and_ends_as_a_user_without_rights() -> None:
    assert re.search(r"^ARG CUDA=\d+\.\d+\.\d+$", TEXT, re.MULTILINE)
    assert re.findall(r"^USER (.*)$", TEXT, re.MULTILINE)[-1] == "${UID}"
    assert "ARG UID=1001" in TEXT
    assert 'VOLUME ["/checkpoints", "/cache"]' in TEXT
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"ARG VERSION={version}" in TEXT


def test_no_secret_is_an_argument_or_a_layer() -> None:
    assert not re.findall(r"^(?:ARG|ENV) .*(?:TOKEN|SECRET|PASSWORD)", TEXT, re.MULTILINE)


def test_all_that_is_copied_is_let_through_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    lines = re.findall(r"^COPY --chown=\S+ (.*) \S+$", TEXT, re.MULTILINE)
    copied = {word for line in lines for word in line.split()}
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def test_compose_trains_on_one_node_with_memory_and_volumes() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    assert set(compose) == {"services", "volumes"}
    train = compose["services"]["train"]
    assert (train["shm_size"], train["environment"]) == ("64gb", ["HF_TOKEN"])
    assert train["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert [volume.partition(":")[2] for volume in train["volumes"]] == ["/checkpoints", "/cache"]
    assert (ROOT / "docker" / train["build"]["context"] / train["build"]["dockerfile"]).resolve() == DOCKERFILE
    known = {"build", "image", "entrypoint", "command", "init", "shm_size", "stop_grace_period", "ulimits",
             "environment", "volumes", "deploy"}  # fmt: skip
    assert set(train) <= known
