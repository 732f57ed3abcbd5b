"""What verbs share: the form of their answer, and `--version`."""

from collections.abc import Callable
from typing import Annotated, TypeAlias

import typer

from seektune import __version__

Work: TypeAlias = Callable[[], int | None]
"""What a verb does once its words are understood; a number is its exit code, None means 0."""

HELP = {"help_option_names": ["-h", "--help"]}
OPEN_ENDED = {"ignore_unknown_options": True, **HELP}
"""Overrides are options whose names only the recipe knows."""


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"seektune {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
]
