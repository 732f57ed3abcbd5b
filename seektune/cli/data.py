"""The command `data preview`: training rows before training reads them."""

import os
from functools import partial
from typing import Annotated

import typer

from seektune.cli.options import ALLOW_OVERRIDES, Action
from seektune.cli.train import OVERRIDES_HELP, RecipeArgs, split_args
from seektune.io.cache_dir import cache_dir

PREVIEW_HELP = f"""Print a training row: its text, its tokens with the taught ones (those in the loss) marked, document
boundaries, padding, and what is longer than batch.length.

\b
  seektune data preview RECIPE --row 3
A packed row of several documents:
  seektune data preview RECIPE --batch.pack=true --batch.length=256

{OVERRIDES_HELP}
"""

PREPARE_HELP = f"""Encode the rows of RECIPE into the cache, once; training does it by itself where this was not done.

\b
  seektune data prepare RECIPE

A preparation that was stopped continues at the first part that is missing. The last line of each dataset says where
the examples are: memory-mapped Arrow files of about 4 bytes per token. XDG_CACHE_HOME chooses another disk.

{OVERRIDES_HELP}
"""

data_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@data_app.callback(help="Inspect training data.", invoke_without_command=True)
def _data(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@data_app.command(
    "preview", help=PREVIEW_HELP, short_help="Print a row as training reads it.", context_settings=ALLOW_OVERRIDES
)
def preview(
    args: RecipeArgs = None,
    row: Annotated[int, typer.Option(min=0, metavar="N", help="Row number in training order, from 0.")] = 0,
) -> Action:
    """The command `data preview`."""
    return partial(_preview, *split_args(args or []), row)


@data_app.command(
    "prepare",
    help=PREPARE_HELP,
    short_help="Encode the rows of a recipe into the cache.",
    context_settings=ALLOW_OVERRIDES,
)
def prepare(args: RecipeArgs = None) -> Action:
    """The command `data prepare`."""
    return partial(_prepare, *split_args(args or []))


def _prepare(path: str, overrides: list[str]) -> None:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(path, overrides).recipe
    from seektune.workflows.prepare import prepare

    prepare(recipe, cache_dir(os.environ))


def _preview(path: str, overrides: list[str], row: int) -> None:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(path, overrides).recipe
    from seektune.workflows.preview import preview

    preview(recipe, row, cache_dir(os.environ))
