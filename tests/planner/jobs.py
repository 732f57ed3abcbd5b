"""Planner jobs of the example recipes."""

from pathlib import Path

from seektune.planner.job import Layout
from seektune.recipe.load import load_recipe
from seektune.recipe.recipe import Recipe
from seektune.workflows.planning import job_of, layout_of


def recipe(path: Path, *words: str) -> Recipe:
    return load_recipe(path, [f"--{word}" for word in words])


def layout(path: Path, world: int, *words: str) -> Layout:
    asked = recipe(path, *words)
    config = asked.model.architecture()
    assert config is not None
    return layout_of(job_of(asked, config), world)
