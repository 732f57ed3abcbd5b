"""The recipes that ship with the package: lists them, and copies them for editing."""

import json
import re
import shlex
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from seektune.paths import refuse_no_folder
from seektune.recipe.document import shorten
from seektune.recipe.load import schema

FIRST = "deepseek_v4_tiny_hellaswag"
EXAMPLES = Path(__file__).parents[1] / "examples"
"""In a checkout a link to the repository's examples/, in a wheel a copy of that folder."""
SCHEMA = "recipe.schema.json"


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the package."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name without `.yaml`."""
        return self.path.stem

    @property
    def summary(self) -> str:
        """What it trains: the comment below its schema line."""
        return self.path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")

    def text_for(self, folder: Path) -> str:
        """The recipe's text, with the paths in its comments adjusted to a copy in `folder`."""
        text = self.path.read_text(encoding="utf-8")
        text = re.sub(r"(?<=\$schema=)\S+", SCHEMA, text, count=1)
        return re.sub(r"examples/(?:\w+/)+(\w+\.yaml)", lambda match: shlex.quote(str(folder / match[1])), text)


def shipped_recipes() -> list[ShippedRecipe]:
    """All recipes of the package, sorted by name."""
    return sorted(map(ShippedRecipe, EXAMPLES.rglob("*.yaml")), key=lambda recipe: recipe.name)


def find_recipe(name: str) -> ShippedRecipe:
    """The recipe with this name, with or without `.yaml`.

    Raises:
        ValueError: there is none; the message suggests the closest name.
    """
    by_name = {recipe.name: recipe for recipe in shipped_recipes()}
    recipe = by_name.get(name.removesuffix(".yaml"))
    if recipe is not None:
        return recipe
    near = get_close_matches(name, by_name, n=1, cutoff=0)[0]
    raise ValueError(
        f"no shipped recipe is called {shorten(name)}; did you mean {near}? `seektune init` lists them all"
    )


def looks_like_a_recipe(name: str) -> bool:
    """Whether a name is close to that of a shipped recipe."""
    return bool(get_close_matches(name, [recipe.name for recipe in shipped_recipes()], n=1, cutoff=0.8))


def default_recipe() -> ShippedRecipe:
    """The recipe for a first run on any machine: of CPU size, with rows that are fetched."""
    return find_recipe(FIRST)


def copy_recipe(recipe: ShippedRecipe, folder: Path) -> Path:
    """Copy a recipe to a folder, together with the JSON schema for editors; returns the copy's path.

    Raises:
        ValueError: the copy exists already, or the folder's name is not printable.
        OSError: the folder or a file cannot be written.
    """
    copy = folder / recipe.path.name
    if not str(folder).isprintable():
        raise ValueError(f"{folder}: the folder's name has characters that cannot be printed")
    refuse_no_folder(folder)
    if copy.exists():
        raise ValueError(f"{copy} already exists; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write_new(copy, recipe.text_for(folder))
    if not (folder / SCHEMA).exists():
        _write_new(folder / SCHEMA, json.dumps(schema(), indent=1) + "\n")
    return copy


def _write_new(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
