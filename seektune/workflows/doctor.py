"""The command `doctor`: checks whether this machine has what training needs."""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import monotonic

import torch
from huggingface_hub import HfApi, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from seektune import __version__
from seektune.io.console import say, size
from seektune.workflows.validate import BAD, GOOD, UNKNOWN, Finding

PYTHON = (3, 11)
OPEN_FILES = 4096
"""Minimum limit for a job with many shards and sockets."""
SHARED = 10**9
"""Minimum bytes of /dev/shm, for NCCL."""
WRITTEN = 64 * 10**6
SKEW = 1.0
"""Seconds by which clocks may differ, so that logs of ranks can be compared."""
MEETING = 60.0
"""Timeout in seconds of the process-group check."""
PARTING = 40.0
"""Seconds that torchrun has to end its workers; it waits 30 for them."""
FREE = 10**9
"""Minimum bytes of free disk; checkpoints of all weights of Flash take terabytes."""
MEET = "seektune.workflows.comm_check"


def doctor(folder: Path, processes: int, as_json: bool) -> bool:
    """Print all findings; returns whether none is wrong. `folder` is where runs will be written."""
    findings = list(examine(folder, processes))
    if as_json:
        say(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            say(f"{finding.state:>7}  {finding.subject}: {finding.said}")
    return all(finding.state != BAD for finding in findings)


def examine(folder: Path, processes: int) -> Iterator[Finding]:
    """All findings, in order."""
    version = platform.python_version()
    yield Finding("python", GOOD if sys.version_info >= PYTHON else BAD, f"{version}, SeekTune {__version__}")
    yield _torch()
    yield from _gpus()
    yield from _limits()
    yield from _disk(folder)
    yield _hub()
    yield _cache()
    yield _meeting(processes)


def _torch() -> Finding:
    cuda = torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available():
        built = f"built for {cuda}, but no driver answers" if cuda else "built without CUDA"
        return Finding("torch", GOOD if cuda is None else BAD, f"{torch.__version__}, {built}")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return Finding("torch", GOOD, f"{torch.__version__}, CUDA {cuda}, NCCL {nccl}")


def _gpus() -> Iterator[Finding]:
    count = torch.cuda.device_count()
    if count == 0:
        yield Finding("gpus", UNKNOWN, "none: training runs on the CPU")
        return
    names = [torch.cuda.get_device_properties(number) for number in range(count)]
    kinds = {f"{each.name}, {size(each.total_memory)}" for each in names}
    driver = _asked("--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    said = f"{count}: {'; '.join(sorted(kinds))}" + (f", driver {driver}" if driver else "")
    yield Finding("gpus", GOOD if len(kinds) == 1 else BAD, said)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    apart = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    said = f"{len(apart)} of {len(pairs)} pairs cannot reach each other directly" if apart else "all reach each other"
    yield Finding("links", UNKNOWN if apart else GOOD, _links() or said)


def _links() -> str:
    """The types of links between GPUs that nvidia-smi reports, on one line."""
    links = {word for line in _asked("topo", "-m").splitlines() if line.startswith("GPU") for word in line.split()[1:]}
    return ", ".join(sorted(word for word in links if word[:2] in ("NV", "PI", "PX", "PH", "NO", "SY")))


def _asked(*words: str) -> str:
    """The output of nvidia-smi; empty if it is not installed or hangs."""
    try:
        return subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _limits() -> Iterator[Finding]:
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        yield Finding("shared memory", GOOD if free >= SHARED else BAD, f"{size(free)} free in /dev/shm (--shm-size)")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft >= OPEN_FILES or soft == resource.RLIM_INFINITY
    yield Finding("open files", GOOD if enough else UNKNOWN, f"{soft} may be open (ulimit -n), at most {hard}")
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    said = "no limit" if locked == resource.RLIM_INFINITY else f"{size(locked)}; RDMA wants no limit"
    yield Finding("locked memory", GOOD if locked == resource.RLIM_INFINITY else UNKNOWN, f"{said} (ulimit -l)")


def _disk(folder: Path) -> Iterator[Finding]:
    here = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(here).free
    yield Finding("disk", GOOD if free >= FREE else BAD, f"{size(free)} free for checkpoints in {here}")
    try:
        rate = _write_rate(here)
    except OSError as error:
        yield Finding("writing", BAD, f"{here}: {error.strerror}")
        return
    yield Finding("writing", GOOD, f"{size(round(rate))} a second, flushed")


def _write_rate(folder: Path) -> float:
    """Bytes per second written and flushed to the disk."""
    block = os.urandom(WRITTEN)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = monotonic()
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN / (monotonic() - began)


def _hub() -> Finding:
    return _reached(lambda: HfApi().model_info("deepseek-ai/DeepSeek-V4-Flash", timeout=10).sha or "")


def _reached(ask: Callable[[], str]) -> Finding:
    try:
        return Finding("hub", GOOD, f"answers; DeepSeek-V4-Flash is at {ask()[:12]}")
    except Exception as error:  # HTTP clients raise many types; all mean that the Hub cannot be reached
        return Finding(
            "hub", UNKNOWN, f"cannot be reached ({type(error).__name__}); model.weights must be a local folder"
        )


def _cache() -> Finding:
    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return Finding("cached files", UNKNOWN, "none")
    names = ", ".join(sorted(repository.repo_id for repository in found.repos)[:5])
    return Finding("cached files", GOOD, f"{size(found.size_on_disk)}: {names or 'none'}")


def _meeting(processes: int) -> Finding:
    """Processes under torchrun that meet, compare clocks and sum tensors."""
    if processes == 1:
        return Finding("processes", GOOD, "1, which has none to meet; --nproc-per-node 2 lets two meet")
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", MEET]
    # neither torchrun nor the workers that it starts import modules of the current folder
    safe = {**os.environ, "PYTHONSAFEPATH": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=safe) as torchrun:
        try:
            out, error = torchrun.communicate(timeout=MEETING)
        except subprocess.TimeoutExpired:
            _part(torchrun)
            return Finding("processes", BAD, f"{processes} did not meet and part within {MEETING:.0f} s")
    if torchrun.returncode:
        return Finding("processes", BAD, f"{processes} did not meet: {(error.splitlines() or ['no word'])[-1]}")
    found = json.loads(out.splitlines()[-1])
    skew = found["clock_skew_s"]
    said = f"{found['processes']} over {found['backend']}: sums at {found['all_reduce_gb_s']:.2f} GB/s each, "
    return Finding("processes", GOOD if skew < SKEW else BAD, f"{said}clocks {skew * 1000:.1f} ms apart")


def _part(torchrun: subprocess.Popen[str]) -> None:
    """Terminate torchrun, which then ends its hanging workers; killing it at once would leave them running."""
    torchrun.terminate()
    try:
        torchrun.communicate(timeout=PARTING)
    except subprocess.TimeoutExpired:
        torchrun.kill()
