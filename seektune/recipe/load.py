"""A recipe's file and its overrides into a checked Recipe, and back into text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from seektune.recipe.checks import check_architecture, fit_to_overrides
from seektune.recipe.document import YamlNode, read_document
from seektune.recipe.errors import blame, complain, find_section
from seektune.recipe.override import apply_overrides, read_overrides
from seektune.recipe.recipe import Recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe as it will run, and what was settled on the way."""

    recipe: Recipe
    name: str
    """The file's stem; names the run."""
    notes: tuple[str, ...]
    """Sentences for the user: what an override changed beside the key it names."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, with overrides such as `--optimizer.lr=1e-4` on top, and check it.

    Raises:
        ValueError: anything wrong with the file or an override; one line with the place and the nearest right key.
        OSError: the file cannot be read.
    """
    return read_recipe(path, overrides).recipe


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """As `load_recipe`, with the run's name and the notes that the user should see."""
    changes = read_overrides(overrides)
    written = read_document(path)
    document, notes = fit_to_overrides(written, apply_overrides(written, changes), changes)
    recipe = _validate(document)
    try:
        recipe = check_architecture(recipe)
    except ValueError as error:
        source = ("model", "config" if recipe.model.config is not None else "weights")
        raise ValueError(blame(str(error), document, Recipe, source)) from None
    return LoadedRecipe(recipe, Path(path).stem, tuple(notes))


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults written out; loads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe's file, with descriptions, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _validate(document: YamlNode) -> Recipe:
    # through JSON, because strict there still takes a list for a tuple, but neither "5" nor true for a number
    try:
        return Recipe.model_validate_json(json.dumps(document.plain(), ensure_ascii=False).encode(), strict=True)
    except UnicodeEncodeError:
        raise ValueError(f"{document.where}: a value holds a character that is not Unicode text") from None
    except ValidationError as error:
        bare = _numbers_for_words(error, document)
        if bare == document:
            raise ValueError(complain(error, document, Recipe)) from None
    return _validate(bare)


def _numbers_for_words(error: ValidationError, document: YamlNode) -> YamlNode:
    """The document with numbers taken as they were written where words are expected: a folder may be named 2026."""
    for each in error.errors(include_url=False):
        path = tuple(str(part) for part in find_section(each["loc"], Recipe)[0])
        entry = document.find(path)
        if each["type"] in ("string_type", "path_type") and entry is not None and type(entry.value) in (int, float):
            document = document.put(path, YamlNode(entry.text, entry.where, entry.text, entry.override))
    return document
