"""The wheel works outside the repository: it has every data file, and its verbs run from an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from tests.patience import HUNG
from tests.places import ROOT

SOURCES = ("seektune", "examples", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"
"""What `python -m build` calls, in this environment in place of an empty one that it would have to download."""


def build(kind: str, source: Path, out: Path) -> Path:
    """A wheel or sdist of the project in a folder."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as `python -m build` does it."""
    folder = tmp_path_factory.mktemp("build")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, checkout / name)
    sdist = build("sdist", checkout, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    return build("wheel", folder / "sdist" / sdist.name.removesuffix(".tar.gz"), folder)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files, as `pip install --no-deps --target` leaves it."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(installed: Path) -> None:
    wanted = {
        path.relative_to(ROOT)
        for folder in (ROOT / "seektune", ROOT / "seektune" / "examples")
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.relative_to(installed) for path in (installed / "seektune").rglob("*") if path.is_file()} == wanted
    assert not any(path.is_symlink() for path in installed.rglob("*"))
    scripts = next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    assert "seektune = seektune.__main__:main\n" in scripts
    assert "automodel = seektune.__main__:automodel\n" in scripts


IN_ONE_PROCESS = """
import sys, typer, seektune.cli
print(seektune.__file__)
for words in {commands}:
    code = typer.main.get_command(seektune.cli.app)(words, standalone_mode=False)()
    assert not code, (words, code)
"""
"""Runs several verbs, so that torch is imported once."""


@pytest.mark.slow
def test_verbs_run_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    data = f"--data.path={write_hellaswag(tmp_path / 'rows', 20, 4)}"
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def python(*words: str) -> str:
        command = [sys.executable, "-P", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (train,) = [line.split() for line in python("-m", "seektune", "init", ".").splitlines() if " train " in line]
    recipe = train[-1]
    dry_run = ["train", recipe, "--dry-run", "--world-size=1"]
    small = ("--steps=1", "--batch.global_size=2", "--batch.micro_size=2", "--evaluate.limit=2", "--run_dir=run")
    commands = [["plan", recipe], ["validate", recipe, data], dry_run, ["train", recipe, data, *small]]
    said = python("-c", IN_ONE_PROCESS.format(commands=commands))
    assert said.startswith(str(installed))
    assert (folder / "run" / "report.html").is_file()
