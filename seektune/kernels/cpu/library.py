"""Compiles and loads the C++ kernels of this folder at first use, once per machine."""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter

from seektune.io.cache_dir import cache_dir

FLAGS = [
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC"),
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"),
]
"""Sums may be taken in another order; what is no number or infinite stays so, unlike under `-ffast-math`."""
COMPILERS = "g++", "clang++", "c++"
SYSTEM = 0
"""The user whose files every process trusts."""

SIGNATURES = {
    "clamped_swiglu": (3, 1, 1),
    "expert_mlp": (9, 3, 1),
    "grouped_linear": (3, 4, 0),
    "hyper_read": (7, 4, 2),
    "hyper_write": (5, 3, 0),
    "index_topk": (7, 7, 0),
    "norm_rope": (4, 4, 1),
    "rms_norm": (3, 2, 1),
    "rotate": (4, 4, 0),
    "route": (5, 3, 1),
    "sort_pairs": (5, 3, 0),
    "sparse_attention": (9, 10, 0),
}
"""How many addresses, sizes and numbers each takes, in this order."""

log = logging.getLogger("seektune")


@cache
def function(name: str) -> Callable[..., None]:
    """A kernel of the library, which must be there."""
    compiled = library()
    assert compiled is not None
    kernel = compiled[name]
    addresses, sizes, numbers = SIGNATURES[name]
    kernel.restype = None
    kernel.argtypes = [*[ctypes.c_void_p] * addresses, *[ctypes.c_int64] * sizes, *[ctypes.c_double] * numbers]
    return kernel


@cache
def library() -> ctypes.CDLL | None:
    """All kernels; None, and one line that says why, where they cannot be made."""
    try:
        file = made(cache_dir(os.environ))
        try:
            return ctypes.CDLL(str(file))
        except OSError:  # made for another system's libraries
            return ctypes.CDLL(str(made(file.parent, anew=True)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = str(error).strip().splitlines()[0]
        log.warning("could not compile the CPU decode kernels; generation will be several times slower: %s", reason)
        return None


def made(folder: Path, anew: bool = False) -> Path:
    """The library's file in `folder`, compiled unless it is there; in a folder of its own where that is not writable.

    Raises:
        OSError, RuntimeError, SubprocessError: it cannot be made, or others could have.
    """
    here = Path(__file__).parent
    sources = sorted(here.glob("*.cpp"))
    told = [path.read_bytes() for path in (*sources, *sorted(here.glob("*.h")))]
    name = hashlib.sha256(b"\0".join([*told, " ".join(FLAGS).encode(), machine()])).hexdigest()[:20]
    file = folder / f"kernels-{name}.so"
    if is_whole(file) and not anew:
        return file  # also where the folder can only be read, and where nothing compiles
    if (compiler := next((path for name in COMPILERS if (path := shutil.which(name))), None)) is None:
        raise RuntimeError("no C++ compiler (g++) was found")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="seektune-"))
        file = folder / file.name
        lock = (folder / "lock").open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of many processes that start together one compiles
        if anew or not is_whole(file):
            began = perf_counter()
            part = file.with_suffix(".part")
            compile_to(part, compiler, sources)
            seal(part, file)
            log.info("compiled the CPU decode kernels in %.1f s: %s", perf_counter() - began, file)
    return file


def compile_to(file: Path, compiler: str, sources: list[Path]) -> None:
    """Compile.

    Raises:
        OSError, RuntimeError: that does not go.
    """
    done = subprocess.run([compiler, *FLAGS, *map(str, sources), "-o", str(file)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{compiler} ends with {done.returncode}: {done.stderr}")


def seal(part: Path, file: Path) -> None:
    """Let `file` appear, complete, with its digest after its end, which no loader reads."""
    code = part.read_bytes()
    part.write_bytes(code + hashlib.sha256(code).digest())
    part.chmod(0o644)
    part.replace(file)


def is_whole(file: Path) -> bool:
    """Whether a library is there and ends with its digest: to load one that a full disk or a crash cut off is fatal.

    Raises:
        RuntimeError: others could have written or replaced it, and it would run as this user.
    """
    try:
        refuse_of_others(file.parent.resolve() / file.name)
        sealed = file.read_bytes()
    except OSError:
        return False
    return sealed[-32:] == hashlib.sha256(sealed[:-32]).digest()


def refuse_of_others(file: Path) -> None:
    """Check that nobody else can write a file or its folder, or put another folder in the place of one above it.

    Raises:
        RuntimeError: others can, or the file is a link, which says nothing of what it leads to.
        OSError: it is not there.
    """
    for path in (file.parent, file):
        found = path.lstat()
        if found.st_uid not in (SYSTEM, os.geteuid()) or found.st_mode & 0o022:  # a link has all bits
            raise RuntimeError(f"others own {path} or can write it; remove it, or take it with chown and chmod go-w")
    for path in file.parent.parents:
        if path.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise RuntimeError(f"others can rename what is in {path}; take it with chmod o-w, or set XDG_CACHE_HOME")


def machine() -> bytes:
    """What code for this machine must not be used without: where homes are shared, others have other processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("flags", "Features", "model name")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(kinds)})]).encode()
