"""The command `init`: list the recipes that ship with the package, or copy one."""

import shlex
from pathlib import Path

from seektune.io.console import say
from seektune.recipe.shipped import copy_recipe, default_recipe, find_recipe, looks_like_a_recipe, shipped_recipes


def list_recipes() -> None:
    """Print the name of every shipped recipe and what it trains."""
    recipes = shipped_recipes()
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        say(f"{recipe.name:<{width}}  {recipe.summary}")
    say(f"\nNext: seektune init {default_recipe().name} recipes")


def init(first: str, folder: Path | None) -> None:
    """Copy a recipe into a folder and print the commands that use it.

    Args:
        first: the name of a shipped recipe, or, where no folder follows, the folder for the default recipe.
        folder: where the copy goes, made where it does not exist; None is the current one after a recipe's name.

    Raises:
        ValueError: no recipe has this name, or the copy exists already.
        OSError: a file cannot be written.
    """
    if folder is None and not looks_like_a_recipe(first):
        recipe = default_recipe()
        copy = copy_recipe(recipe, Path(first))
    else:
        recipe = find_recipe(first)
        copy = copy_recipe(recipe, folder or Path())
    say(f"wrote {copy}: {recipe.summary}")
    path = shlex.quote(str(copy))
    say(f"\nNext: seektune validate {path}\n      seektune train {path}")
