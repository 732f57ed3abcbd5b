"""The command `init`: copies of the recipes that ship with the package."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from seektune.cli.options import Action, path_flag

INIT_HELP = """Copy a shipped recipe into the folder DIR, to be edited and trained.

\b
List the recipes:
  seektune init
Copy one of them with its comments, and the schema that editors check it with:
  seektune init RECIPE DIR
Copy the recipe for a first try, which trains on any CPU in a few minutes:
  seektune init DIR

A file that exists is never overwritten.
"""


def init(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", show_default=False, help="Name of a shipped recipe.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", parser=path_flag, show_default=False, help="Folder for the copy; may be new."),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the shipped recipes and exit.")] = False,
) -> Action:
    """The command `init`."""
    return partial(_init, recipe, folder, show_list)


def _init(recipe: str | None, folder: Path | None, show_list: bool) -> None:
    from seektune.workflows.init import init, list_recipes

    if recipe is None or show_list:
        list_recipes()
    else:
        init(recipe, folder)
