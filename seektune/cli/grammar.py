"""What verbs share: the form of their answer."""

from collections.abc import Callable
from typing import TypeAlias

Work: TypeAlias = Callable[[], int | None]
"""What a verb does once its words are understood; a number is its exit code, None means 0."""

HELP = {"help_option_names": ["-h", "--help"]}
OPEN_ENDED = {"ignore_unknown_options": True, **HELP}
"""Overrides are options whose names only the recipe knows."""
