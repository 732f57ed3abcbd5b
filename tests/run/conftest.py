"""The recipes of tests/workflows."""

from tests.workflows.conftest import config_file, recipe, rows

__all__ = ["config_file", "recipe", "rows"]
