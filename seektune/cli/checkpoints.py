"""The commands `convert`, `verify`, `inspect` and `merge`, which work on checkpoint folders."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from seektune.cli.errors import explain_out_of_memory
from seektune.cli.options import Action, checkpoint_flag, path_flag

CONVERT_HELP = """Convert checkpoint SRC to another format in the new folder DST; needs memory for one tensor at a time.

\b
Released weights to bf16, for software that does not read FP4:
  seektune convert deepseek-ai/DeepSeek-V4-Flash flash-bf16 --to bf16
Trained weights back to the released format; tensors that training did not change get their original bytes:
  seektune convert runs/mine/model mine-released --to released --original deepseek-ai/DeepSeek-V4-Flash
What transformers saved likewise; the MTP block, which it leaves out, comes from the original:
  seektune convert saved saved-released --to released --original deepseek-ai/DeepSeek-V4-Flash

\b
Formats: released (FP4 experts, FP8), fp8 (experts in FP8 too), base (FP8 with F32 scales), bf16, fp32.

After an interruption the same command resumes. At the end it reports which tensors were copied byte for byte, which
were re-encoded exactly, and which values the format cannot represent.
"""

VERIFY_HELP = """Compare checkpoints A and B tensor by tensor; their formats may differ.

\b
Check that a conversion kept every value:
  seektune verify runs/mine/model mine-released
List what training changed:
  seektune verify deepseek-ai/DeepSeek-V4-Flash mine-released --json

Exit codes: 0 equal (bytes, values, or within the tolerance), 1 different, 2 a checkpoint cannot be read.
"""

MERGE_HELP = """Merge the LoRA adapter ADAPTER into BASE, the checkpoint it was trained on; writes the new folder DST.

\b
To bf16 weights:
  seektune merge deepseek-ai/DeepSeek-V4-Flash runs/mine/adapter merged --to bf16
The changed matrices in FP8, everything else byte for byte as released:
  seektune merge deepseek-ai/DeepSeek-V4-Flash runs/mine/adapter merged --to mixed-fp8

\b
Formats: released, fp8, base, bf16, fp32, and mixed-fp8 or mixed-bf16, which re-encode only changed matrices.

Rounding to FP4 or FP8 can lose a small change. The merge reports how much of the adapter's change survives in each
kind of module, and refuses a result that keeps less than half, unless the adapter was trained for that format
(lora.merge_into) or --force is given.
"""

INSPECT_HELP = """Describe the checkpoint in FOLDER: variant, format, layers, parameters, bytes, and any errors.

\b
  seektune inspect runs/mine/model

Reads file headers only. Exit codes: 0 complete, 1 tensors are missing, unexpected, of a wrong shape or damaged.
"""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", parser=checkpoint_flag, help="Checkpoint to convert: a folder or a Hub id.")
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", parser=path_flag, help="Output folder; must be new or empty.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="Format to write.")],
    original: Annotated[
        str | None,
        typer.Option(
            metavar="RELEASED",
            parser=checkpoint_flag,
            help="Checkpoint that training started from: a folder or a Hub id.",
        ),
    ] = None,
) -> Action:
    """The command `convert`."""
    return partial(_convert, source, destination, to, original)


def verify(
    a: Annotated[str, typer.Argument(metavar="A", parser=checkpoint_flag, help="Checkpoint: a folder or a Hub id.")],
    b: Annotated[str, typer.Argument(metavar="B", parser=checkpoint_flag, help="Checkpoint to compare it with.")],
    tolerance: Annotated[
        float, typer.Option(metavar="X", help="Largest absolute difference that counts as equal.")
    ] = 0.0,
    as_json: AsJson = False,
) -> Action:
    """The command `verify`."""
    return partial(_verify, a, b, tolerance, as_json)


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", parser=path_flag, help="Checkpoint folder.")],
    as_json: AsJson = False,
) -> Action:
    """The command `inspect`."""
    return partial(_inspect, folder, as_json)


def merge(
    base: Annotated[
        str, typer.Argument(metavar="BASE", parser=checkpoint_flag, help="Base checkpoint: a folder or a Hub id.")
    ],
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", parser=path_flag, help="Adapter folder, as a run or PEFT writes it.")
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", parser=path_flag, help="Output folder; must be new or empty.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="Format to write.")],
    weight: Annotated[float, typer.Option(metavar="X", help="Factor on the adapter's change.")] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="Merge even if most of the change is lost.")] = False,
) -> Action:
    """The command `merge`."""
    return partial(_merge, base, adapter, destination, to, weight, force)


def _merge(base: str, adapter: Path, destination: Path, to: str, weight: float, force: bool) -> None:
    from seektune.workflows.merge import merge_adapter

    with explain_out_of_memory("the largest changed tensor needs room in fp32, several times"):
        merge_adapter(base, adapter, destination, to, weight, force)


def _convert(source: str, destination: Path, to: str, original: str | None) -> None:
    from seektune.workflows.convert import convert_checkpoint

    with _single_threaded("the largest tensor needs room as it is read and as it is written"):
        convert_checkpoint(source, destination, to, original)


def _verify(a: str, b: str, tolerance: float, as_json: bool) -> int:
    from seektune.workflows.verify import verify

    with _single_threaded("the largest tensor needs room in both checkpoints' formats"):
        return 0 if verify(a, b, tolerance, as_json) else 1


def _inspect(folder: Path, as_json: bool) -> int:
    from seektune.workflows.inspect import inspect

    return 0 if inspect(folder, as_json) else 1


@contextmanager
def _single_threaded(need: str) -> Iterator[None]:
    """Work that is bound by disk and memory: threads sharing small tensors would slow it on a busy machine."""
    import torch

    torch.set_num_threads(1)
    with explain_out_of_memory(need):
        yield
