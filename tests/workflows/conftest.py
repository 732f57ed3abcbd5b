"""Recipes that train in seconds on made rows."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.model.config import DeepseekV4Config
from seektune.recipe.recipe import Recipe
from tests.blank_figures import blank_figures

__all__ = ["blank_figures"]
Make = Callable[..., Recipe]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 6 validation rows."""
    return write_hellaswag(tmp_path_factory.mktemp("rows"), 40, 6)


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory, toy_config: Callable[..., DeepseekV4Config]) -> Path:
    """The toy architecture with the smallest vocabulary that can spell the rows."""
    folder = tmp_path_factory.mktemp("config")
    toy_config(vocab_size=512).save(folder)
    return folder / "config.json"


def made_recipe(rows: Path, config_file: Path, run_dir: Path, /, **changes: Any) -> Recipe:
    """A recipe of three steps, with changes by dotted key."""
    values: dict[str, Any] = {
        "model": {"config": str(config_file), "dtype": "fp32"},
        "data": {"path": str(rows)},
        "batch": {"global_size": 4, "micro_size": 2, "length": 64},
        "optimizer": {"lr": 5e-3},
        "evaluate": {"limit": 6, "every": 2, "tasks": ["hellaswag"]},
        "logging": {"to": []},
        "steps": 3,
        "run_dir": str(run_dir),
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values[section], name: value} if name else value
    return Recipe.model_validate_json(json.dumps(values), strict=True)


@pytest.fixture
def recipe(rows: Path, config_file: Path, tmp_path: Path) -> Make:
    """`made_recipe`, whose run is in the test's folder."""
    return partial(made_recipe, rows, config_file, tmp_path / "run")
