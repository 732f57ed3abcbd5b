"""The recipes of tests/workflows."""

from tests.blank_figures import blank_figures
from tests.workflows.conftest import config_file, recipe, rows

__all__ = ["blank_figures", "config_file", "recipe", "rows"]
