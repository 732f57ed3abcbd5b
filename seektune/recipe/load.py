"""Loads a recipe file and overrides into a checked Recipe, and dumps it back to YAML."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seektune.recipe.checks import check_architecture, fit_to_overrides, refuse_none
from seektune.recipe.document import read_document
from seektune.recipe.errors import locate
from seektune.recipe.indexer_checks import check_indexer
from seektune.recipe.objective_checks import check_objective
from seektune.recipe.override import apply_overrides, read_overrides
from seektune.recipe.recipe import Recipe
from seektune.recipe.validation import validate


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, its name and notes."""

    recipe: Recipe
    name: str
    """The file's stem, after which the run is named."""
    notes: tuple[str, ...]
    """Messages for the user about settings that an override changed indirectly."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, with overrides such as `--optimizer.lr=1e-4` on top, and check it.

    Raises:
        ValueError: the file or an override is invalid; one line with the location and the closest valid key.
        OSError: the file cannot be read.
    """
    return read_recipe(path, overrides).recipe


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """As `load_recipe`, with the run's name and notes for the user."""
    changes = read_overrides(overrides)
    written = read_document(path)
    document, notes = fit_to_overrides(written, apply_overrides(written, changes), changes)
    refuse_none(document)
    recipe = validate(document, Recipe)
    try:
        # weights on the Hub are checked when their config.json is read
        architecture = recipe.model.architecture()
        recipe = recipe if architecture is None else check_architecture(recipe, architecture)
        recipe = check_indexer(check_objective(recipe))
    except ValueError as error:
        source = ("model", "config" if recipe.model.config is not None else "weights")
        raise ValueError(locate(str(error), document, Recipe, source)) from None
    return LoadedRecipe(recipe, Path(path).stem, tuple(notes))


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included; it loads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, with descriptions, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
