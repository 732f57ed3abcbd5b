"""The verbs `convert`, `verify`, `inspect` and `merge`: checkpoint folders."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from seektune.cli.errors import told_of_memory
from seektune.cli.options import Work

CONVERT_HELP = """Write checkpoint SRC in another format as folder DST, tensor by tensor, in the memory of one tensor.

\b
Released weights as bf16, for whatever reads no FP4:
  seektune convert deepseek-ai/DeepSeek-V4-Flash flash-bf16 --to bf16
What was trained, back in the released layout; tensors that training did not change get their bytes back:
  seektune convert runs/mine/model mine-released --to released --original deepseek-ai/DeepSeek-V4-Flash

\b
Formats: released (FP4 experts, FP8), fp8 (experts in FP8 too), base (FP8 with F32 scales), bf16, fp32.
SRC and --original are folders or Hub ids. Interrupted, the same command goes on where it was. It says what was copied
byte for byte, what was re-encoded exactly, and which values the format cannot hold.
"""

VERIFY_HELP = """Compare checkpoints A and B, folders or Hub ids in any formats, tensor by tensor.

\b
Did a conversion keep every value?
  seektune verify runs/mine/model mine-released
What did training change?
  seektune verify deepseek-ai/DeepSeek-V4-Flash mine-released --json

Exit codes: 0 all equal (bytes, values, or within the tolerance), 1 something differs, 2 a checkpoint cannot be read.
"""

MERGE_HELP = """Merge ADAPTER into BASE, the checkpoint it was trained on, as folder DST.

\b
Into bf16 weights, which hold the change but for their own rounding:
  seektune merge deepseek-ai/DeepSeek-V4-Flash runs/mine/adapter merged --to bf16
What the adapter changed as FP8, everything else byte for byte as released:
  seektune merge deepseek-ai/DeepSeek-V4-Flash runs/mine/adapter merged --to mixed-fp8

\b
Formats: released, fp8, base, bf16, fp32, and mixed-fp8 or mixed-bf16, which store only changed matrices anew.
Rounding to FP4 or FP8 loses a small change. The merge says how much of it every kind of module keeps and refuses to
keep less than half, unless the adapter was trained for that format (lora.merge_into) or --force is given.
"""

INSPECT_HELP = """Print what the checkpoint in FOLDER is: variant, format, layers, parameters, bytes, and what is wrong.

\b
  seektune inspect runs/mine/model

Reads headers only. Exit codes: 0 complete, 1 something is missing, extra, misshapen or damaged.
"""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint: folder or Hub id.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="released, fp8, base, bf16 or fp32.")],
    original: Annotated[
        str | None, typer.Option(metavar="RELEASED", help="The checkpoint that training started from.")
    ] = None,
) -> Work:
    """The verb `convert`."""
    return partial(_convert, source, destination, to, original)


def verify(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint: folder or Hub id.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    tolerance: Annotated[
        float, typer.Option(metavar="X", help="Largest absolute difference of values that counts as equal.")
    ] = 0.0,
    as_json: AsJson = False,
) -> Work:
    """The verb `verify`."""
    return partial(_verify, a, b, tolerance, as_json)


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint folder.")], as_json: AsJson = False
) -> Work:
    """The verb `inspect`."""
    return partial(_inspect, folder, as_json)


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The frozen checkpoint: folder or Hub id.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A folder that a run left, or PEFT.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="How the result is stored.")],
    weight: Annotated[float, typer.Option(metavar="X", help="The change is multiplied by this.")] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="Merge whatever is lost.")] = False,
) -> Work:
    """The verb `merge`."""
    return partial(_merge, base, adapter, destination, to, weight, force)


def _merge(base: str, adapter: Path, destination: Path, to: str, weight: float, force: bool) -> None:
    from seektune.workflows.merge import merge_adapter

    with told_of_memory("the largest changed tensor needs room in fp32, several times"):
        merge_adapter(base, adapter, destination, to, weight, force)


def _convert(source: str, destination: Path, to: str, original: str | None) -> None:
    from seektune.workflows.convert import convert_checkpoint

    with _alone("the largest tensor needs room as it is read and as it is written"):
        convert_checkpoint(source, destination, to, original)


def _verify(a: str, b: str, tolerance: float, as_json: bool) -> int:
    from seektune.workflows.verify import verify

    with _alone("the largest tensor needs room in both checkpoints' formats"):
        return 0 if verify(a, b, tolerance, as_json) else 1


def _inspect(folder: Path, as_json: bool) -> int:
    from seektune.workflows.inspect import inspect

    return 0 if inspect(folder, as_json) else 1


@contextmanager
def _alone(need: str) -> Iterator[None]:
    """One thread: disk and memory are the limit, and threads that share small tensors wait on a busy machine."""
    import torch

    torch.set_num_threads(1)
    with told_of_memory(need):
        yield
