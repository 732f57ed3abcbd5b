"""The commands `data preview`, `data stats` and `data prepare`: rows before training reads them."""

import os
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from seektune.cli.options import ALLOW_OVERRIDES, Action, path_flag
from seektune.cli.train import OVERRIDES_HELP, RecipeArgs, split_args
from seektune.data.split import Split
from seektune.io.cache_dir import cache_dir

PREVIEW_HELP = f"""Print a training row: its text, its tokens with the taught ones (those in the loss) marked, document
boundaries, padding, and what is longer than batch.length.

\b
  seektune data preview RECIPE --row 3
A packed row of several documents:
  seektune data preview RECIPE --batch.pack=true --batch.length=256
A row of a dataset as its file has it, with the reason if it is left out or becomes several examples:
  seektune data preview RECIPE --dataset NAME --row 3 --split validation

{OVERRIDES_HELP}
"""

PREPARE_HELP = f"""Encode the rows of RECIPE into the cache, once; training does it by itself where this was not done.

\b
  seektune data prepare RECIPE
On a Ray cluster whose machines share the cache folder:
  seektune data prepare RECIPE --ray auto

A preparation that was stopped continues at the first part that is missing. The examples of each dataset are printed
with their folder: memory-mapped Arrow files of about 4 bytes per token. XDG_CACHE_HOME chooses another disk.

{OVERRIDES_HELP}
"""

STATS_HELP = f"""Measure the training rows of every dataset: tokens, taught tokens, lengths, tools, scripts, longest,
repeated and bad rows, and what each batch.length would cut.

\b
  seektune data stats RECIPE
  seektune data stats RECIPE --html stats.html
  seektune data stats RECIPE --json

{OVERRIDES_HELP}
"""


class TokenFiles(StrEnum):
    """Kinds of token files that `data prepare` writes."""

    MEGATRON = "megatron"


class ExampleKind(StrEnum):
    """Kinds of rows that `data example` writes."""

    CHAT = "chat"
    PREFERENCE = "preference"
    TEXT = "text"
    PROMPT_COMPLETION = "prompt_completion"


data_app = typer.Typer(add_completion=False, rich_markup_mode=None)


EXAMPLE_HELP = """Write example conversations, about 500 rows made from templates, into the new folder DIR: train.jsonl
and validation.jsonl in the form of OpenAI's messages. The recipe deepseek_v4_tiny_chat learns them in three minutes;
they show how your own files may look.

\b
  seektune data example conversations
Chosen and rejected answers, from which the recipe deepseek_v4_tiny_dpo learns:
  seektune data example preferences --kind preference
TinyShakespeare as documents, from which the recipe deepseek_v4_tiny_pretrain learns:
  seektune data example shakespeare --kind text
Sums with their answers, for the recipe deepseek_v4_tiny_sums and later deepseek_v4_tiny_grpo:
  seektune data example sums --kind prompt_completion
"""


@data_app.callback(help="Inspect training data.", invoke_without_command=True)
def _data(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@data_app.command(
    "preview", help=PREVIEW_HELP, short_help="Print a row as training reads it.", context_settings=ALLOW_OVERRIDES
)
def preview(
    args: RecipeArgs = None,
    row: Annotated[
        int, typer.Option(min=0, metavar="N", help="Row number from 0: in training order, or of the dataset.")
    ] = 0,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="Print a row of this dataset.")] = None,
    split: Annotated[Split, typer.Option(help="With --dataset: the split.")] = "train",
) -> Action:
    """The command `data preview`."""
    return partial(_preview, *split_args(args or []), row, dataset, split)


@data_app.command(
    "prepare",
    help=PREPARE_HELP,
    short_help="Encode the rows of a recipe into the cache.",
    context_settings=ALLOW_OVERRIDES,
)
def prepare(
    args: RecipeArgs = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="auto|ADDRESS", help="Encode on this Ray cluster, which shares the cache folder."),
    ] = None,
    to: Annotated[
        tuple[TokenFiles, Path] | None,
        typer.Option(metavar="megatron FOLDER", help="Also write Megatron-Core's .bin and .idx files into FOLDER."),
    ] = None,
) -> Action:
    """The command `data prepare`."""
    return partial(_prepare, *split_args(args or []), ray, None if to is None else to[1])


def _prepare(path: str, overrides: list[str], ray: str | None, megatron: Path | None) -> None:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(path, overrides).recipe
    from seektune.workflows.prepare_data import PrepareOptions, prepare_data

    prepare_data(recipe, cache_dir(os.environ), PrepareOptions(ray, megatron))


@data_app.command("example", help=EXAMPLE_HELP, short_help="Write example conversations into a new folder.")
def example(
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=path_flag, help="A new folder.")],
    kind: Annotated[ExampleKind, typer.Option(help="Kind of the rows.")] = ExampleKind.CHAT,
) -> Action:
    """The command `data example`."""
    return partial(_example, folder, kind.value)


def _example(folder: Path, kind: str) -> None:
    from seektune.workflows.example_data import example_data

    example_data(folder, kind)


@data_app.command(
    "stats", help=STATS_HELP, short_help="Measure the rows of every dataset.", context_settings=ALLOW_OVERRIDES
)
def stats(
    args: RecipeArgs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", parser=path_flag, help="Write an HTML page.")] = None,
) -> Action:
    """The command `data stats`."""
    return partial(_stats, *split_args(args or []), as_json, html)


def _stats(path: str, overrides: list[str], as_json: bool, html: Path | None) -> None:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(path, overrides).recipe
    from seektune.workflows.data_stats import StatsOptions, data_stats

    data_stats(recipe, StatsOptions(as_json, html), cache_dir(os.environ))


def _preview(path: str, overrides: list[str], row: int, dataset: str | None, split: Split) -> None:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(path, overrides).recipe
    if dataset is not None:
        from seektune.workflows.preview_row import preview_row

        preview_row(recipe, dataset, split, row, cache_dir(os.environ))
        return
    from seektune.workflows.preview import preview

    preview(recipe, row, cache_dir(os.environ))
