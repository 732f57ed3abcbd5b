"""Chooses between our kernel and DeepSeek's for a shape: measured once on a machine, then read from a file.

So a run computes the same again on that machine, and all processes on that machine choose alike: the first one measures
while the others wait for the file's lock. Processes of a job on several machines choose alike, too: what the first of
them has chosen is in the job's store, and replaces what the others' files say. Another GPU or version of a package has
choices of its own.
"""

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from warnings import warn

import torch
import torch.distributed as dist
from torch import Tensor

from seektune.io.atomic import write_atomically
from seektune.io.cache_dir import cache_dir

SWITCH = "SEEKTUNE_DEEPSEEK_KERNELS"
"""Environment variable: 1 uses DeepSeek's kernels where they are faster; without it they are never used."""
OURS = "ours"
REPEATS = 5
Run = Callable[..., Any]
Clock = Callable[[Callable[[], Any]], float]
"""Seconds of one call."""


def implementation(name: str, module: str, ours: Run, arguments: tuple[Any, ...], training: bool) -> Run:
    """DeepSeek's function if it is switched on, installed, takes these arguments and is faster; otherwise ours.

    In `training` it does not depend on whether gradients are asked for.
    """
    if os.environ.get(SWITCH) != "1":
        return ours
    theirs = import_module(f"seektune.kernels.deepseek.{module}")
    if not theirs.supports(*arguments) or not _installed(theirs.PACKAGE):
        return ours
    if training and not theirs.trains(*arguments):
        return ours
    device = arguments[0].device
    file = cache_dir(os.environ) / "kernels" / f"{torch.cuda.get_device_name(device).replace(' ', '-')}.json"
    return choose(name, theirs, ours, arguments, training, Choices.of(file), partial(gpu_seconds, device))


def choose(
    name: str,
    theirs: ModuleType,
    ours: Run,
    arguments: tuple[Any, ...],
    training: bool,
    choices: "Choices",
    clock: Clock,
) -> Run:
    """The one that was faster when this shape was first used on this machine; in `training`, with its backward pass.

    DeepSeek's loses if it raises an error; a lack of memory ends the run instead.
    """
    candidates = {OURS: ours, theirs.PACKAGE: vars(theirs)[name]}

    def measure() -> str:
        work = forward_and_backward if training else forward
        our_seconds = clock(partial(work, ours, arguments))
        try:
            their_seconds = clock(partial(work, candidates[theirs.PACKAGE], arguments))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            warn(f"{theirs.PACKAGE} cannot run {name} here, so our kernel runs: {error}", stacklevel=2)
            return OURS
        return theirs.PACKAGE if their_seconds < our_seconds else OURS

    return candidates[choices.get(shape_key(name, theirs.PACKAGE, arguments, training), measure)]


def forward(run: Run, arguments: tuple[Any, ...]) -> Any:
    """A call without gradients."""
    with torch.no_grad():
        return run(*arguments)


def forward_and_backward(run: Run, arguments: tuple[Any, ...]) -> Any:
    """A call and the gradient of its first argument, also where gradients are off; gives the call's result."""
    with torch.inference_mode(False), torch.enable_grad():
        # a copy, as tensors that were made in inference mode have no gradient
        first = arguments[0].detach().clone().requires_grad_()
        out = run(first, *arguments[1:])
        torch.autograd.grad(out, first, torch.ones_like(out))
    return out


class Choices:
    """The choices of a machine, in a file."""

    def __init__(self, file: Path):
        self._file = file
        self._settled: dict[str, str] = {}

    @classmethod
    @cache
    def of(cls, file: Path) -> "Choices":
        """Those of a file, read once."""
        return cls(file)

    def get(self, key: str, measure: Callable[[], str]) -> str:
        """The choice of a shape, which does not change in a process: of the job, else of the file, else measured.

        It is written for all later runs.
        """
        if key not in self._settled:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = self._read()
                self._settled[key] = of_job(key, lambda: known[key] if key in known else measure())
                if known.get(key) != self._settled[key]:
                    known[key] = self._settled[key]
                    write_atomically(self._file, json.dumps(known, indent=1) + "\n")
        return self._settled[key]

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def of_job(key: str, choose_here: Callable[[], str]) -> str:
    """What the first process of this job that needed it has chosen; without a job, what is chosen here.

    No process waits for another, as they need different shapes at different times.
    """
    if not dist.is_initialized():
        return choose_here()
    store = dist.distributed_c10d._get_default_store()
    name = f"seektune/kernels/{key}"
    found = store.get(name) if store.check([name]) else store.compare_set(name, "", choose_here())
    return found.decode()


def shape_key(name: str, package: str, arguments: tuple[Any, ...], training: bool) -> str:
    """Operation, package with its version, use, and what its speed depends on of the arguments."""
    use = "training" if training else "inference"
    return f"{name} {package} {_version(package)} {use} {' '.join(map(_described, arguments))}"


def _described(argument: Any) -> str:
    """Dtype and shape of a tensor, the number of rows as a power of two, as it varies by step; the number of tensors of
    a sequence, with the first one's; numbers; the name and the fields of a dataclass."""
    if isinstance(argument, Tensor):
        return f"{str(argument.dtype).removeprefix('torch.')}:{'x'.join(map(str, _sizes(argument)))}"
    if is_dataclass(argument):
        parts = (_described(vars(argument)[field.name]) for field in fields(argument))
        return f"{type(argument).__name__}({','.join(parts)})"
    if isinstance(argument, list | tuple) and argument and isinstance(argument[0], Tensor):
        return f"{len(argument)}*{_described(argument[0])}"
    return str(argument) if isinstance(argument, int | float) else type(argument).__name__


def _sizes(x: Tensor) -> list[int]:
    if x.dim() < 2:
        return list(x.shape)
    return [*(1 << (size - 1).bit_length() if size else 0 for size in x.shape[:2]), *x.shape[2:]]


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def gpu_seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """The fastest of some calls after one."""
    spent = []
    for _ in range(REPEATS + 1):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        spent.append(begin.elapsed_time(end) / 1e3)
    return min(spent[1:])
