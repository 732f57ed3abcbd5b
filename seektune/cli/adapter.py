"""The command `adapter export`: adapters in the layout of an inference engine."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from seektune.cli.options import Action, path_flag

EXPORT_HELP = """Write the LoRA adapter FOLDER in the layout that an inference engine loads, as the new folder OUT.

\b
  seektune adapter export runs/mine/adapter mine-vllm --to vllm

Adapters of SeekTune and of other trainers in PEFT's format are read. The result has released names and one pair of
matrices for each expert. Parts that vLLM would ignore without an error (attn.wo_a, attn.compressor) or reject (embed,
head, DoRA) are refused; `seektune merge` merges them into the weights instead.
"""

adapter_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@adapter_app.callback(help="Export adapters for inference engines.", invoke_without_command=True)
def _adapter(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@adapter_app.command("export", help=EXPORT_HELP, short_help="Write an adapter in the layout that an engine loads.")
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", parser=path_flag, help="Adapter in PEFT's format.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=path_flag, help="Output folder; must be new or empty.")],
    to: Annotated[Literal["vllm"], typer.Option("--to", metavar="ENGINE", help="The engine: vllm.")],
) -> Action:
    """The command `adapter export`."""
    return partial(_export, folder, out)


def _export(folder: Path, out: Path) -> None:
    from seektune.workflows.export_adapter import export_adapter

    export_adapter(folder, out)
