"""The console script as a user calls it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seektune.io import console
from tests.blank_figures import DRAWING, draw_once
from tests.forks import run_forked
from tests.launch.ports import held_port
from tests.patience import HUNG
from tests.places import ROOT

CACHE = Path(tempfile.gettempdir()) / f"seektune-tests-{os.getuid()}"
"""What commands cache, apart from the user's own; kept between sessions for compiled kernels."""
RETURN_MEMORY = "import ctypes; ctypes.CDLL(None).mallopt(-3, 65536)\n"
"""Begins code whose peak memory is measured: what it frees goes back to the system at once (M_MMAP_THRESHOLD)."""
CODE = "import sys; sys.argv[0] = 'seektune'; from seektune.cli import main; main()"


def without_room(said: str) -> str:
    """Standard error without the line that says how many tokens of context fit."""
    return re.sub(r"^KV cache: .* tokens of context fit .*\n", "", said, flags=re.MULTILINE)


def seektune(*words: str | Path, cwd: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `seektune` with these words and environment variables."""
    return python(CODE, *map(str, words), cwd=cwd or ROOT, **settings)


def worker_processes(*words: str, world: int) -> list[subprocess.CompletedProcess[str]]:
    """Run `seektune` with these words in `world` processes that have the variables that torchrun sets."""
    if world == 1:
        return [seektune(*words, HF_HUB_OFFLINE="1")]
    with held_port() as port, ThreadPoolExecutor(world) as threads:
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "HF_HUB_OFFLINE": "1"}
        ranks = [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
        return list(threads.map(lambda rank: seektune(*words, **rank), ranks))


def python(code: str, *words: str, cwd: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    """As `python -c code words`, but the process is forked from one that has imported the package."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "XDG_CACHE_HOME": str(CACHE), **settings}
    if environment["XDG_CACHE_HOME"] != str(CACHE):
        share_kernels(Path(environment["XDG_CACHE_HOME"]) / "seektune")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        error = Path(folder) / "error"
        exit_code = run_forked(execute, code, words, cwd, environment, out, error)
        return subprocess.CompletedProcess([code, *words], exit_code, out.read_text(), error.read_text())


def share_kernels(cache: Path) -> None:
    """Give another cache the compiled kernels, which take four seconds to make."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (CACHE / "seektune").glob("kernels-*.so"):
        if not (cache / file.name).exists():
            shutil.copy(file, cache)


def open_standard_streams() -> None:
    """As a new interpreter makes them."""
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115


def execute(
    code: str, words: tuple[str, ...], cwd: Path, environment: Mapping[str, str], out: Path, error: Path
) -> None:
    """What the process does."""
    for descriptor, file in ((1, out), (2, error)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    open_standard_streams()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    console.PAUSE = HUNG  # on no machine is a bar so slow that it prints lines
    for module in DRAWING:
        vars(module)["in_both_themes"] = draw_once
    sys.argv = ["-c", *words]
    exec(code, {"__name__": "__main__"})
