"""The command `doctor`: what it finds wrong, and that nothing it started outlives it."""

import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from seektune.workflows import doctor
from seektune.workflows.validate import BAD, GOOD
from tests.patience import HUNG
from tests.places import ROOT


@pytest.mark.slow
def test_a_full_disk_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.state for each in doctor._disk(tmp_path / "not" / "there")] == [GOOD, GOOD]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    disk, _ = doctor._disk(tmp_path)
    assert (disk.state, disk.said) == (BAD, f"100.00 MB free for checkpoints in {tmp_path}")


def test_links_are_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._links() == ""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU0 X NV18 SYS'\necho 'GPU1 NV18 X SYS'\necho 'NIC0 PIX PHB X'\n")
    tool.chmod(0o755)
    assert doctor._links() == "NV18, SYS"


def test_one_process_needs_no_meeting() -> None:
    assert doctor._meeting(1).state == GOOD


@pytest.mark.slow
def test_workers_that_hang_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker"
    (tmp_path / "sleeper.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(worker)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )

    class Impatient(subprocess.Popen[str]):
        """Its time is over as soon as torchrun's worker is there."""

        def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
            if timeout != doctor.MEETING:
                return super().communicate(input, timeout)
            end = time.monotonic() + HUNG
            while not (worker.exists() and worker.read_text()):
                assert time.monotonic() < end
                time.sleep(0.02)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "MEET", "sleeper")
    monkeypatch.setattr(subprocess, "Popen", Impatient)
    found = doctor._meeting(2)
    assert (found.state, found.said) == (BAD, "2 did not meet and part within 60 s")
    assert not psutil.pid_exists(int(worker.read_text()))


@pytest.mark.slow
def test_no_process_takes_modules_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "planted"
    for name in ("torch", "typing", "socket"):
        (tmp_path / f"{name}.py").write_text(f"open({str(planted)!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    found = doctor._meeting(2)
    assert found.said.startswith("2 over gloo"), found.said
    assert not planted.exists()
