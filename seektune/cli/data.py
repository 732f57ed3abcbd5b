"""The verbs `data ...`: what training reads, before it does."""

import os
from functools import partial
from typing import Annotated

import typer

from seektune.cli.options import OPEN_ENDED, Work
from seektune.cli.train import OVERRIDES_HELP, Words, split_words
from seektune.io.cache_dir import cache_dir

PREVIEW_HELP = f"""Print a row as training would read it: its text, its tokens with the taught ones marked, and
where documents end, what is padding, and what does not fit.

\b
  seektune data preview examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_hellaswag.yaml --row 3
Several documents in a row:
  seektune data preview RECIPE --batch.pack=true --batch.length=256

{OVERRIDES_HELP}
"""

data_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@data_app.callback(help="Look at what training reads.", invoke_without_command=True)
def _data(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@data_app.command(
    "preview", help=PREVIEW_HELP, short_help="Show a row as training reads it.", context_settings=OPEN_ENDED
)
def preview(
    words: Words = None,
    row: Annotated[int, typer.Option(min=0, metavar="N", help="Which row, in the order of training, from 0.")] = 0,
) -> Work:
    """The verb `data preview`."""
    return partial(_preview, *split_words(words or []), row)


def _preview(path: str, overrides: list[str], row: int) -> None:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(path, overrides).recipe
    from seektune.workflows.preview import preview

    preview(recipe, row, cache_dir(os.environ))
