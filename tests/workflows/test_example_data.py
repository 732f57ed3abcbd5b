"""The recipes that `data example` names can be trained at once: none needs the model of an earlier run."""

import pytest

from seektune.recipe.load import load_recipe
from seektune.workflows.example_data import EXAMPLES
from tests.places import RECIPES, ROOT


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_recipe_of_each_kind_begins_from_random_weights(kind: str) -> None:
    (path,) = (ROOT / "examples").rglob(f"{EXAMPLES[kind].recipe}.yaml")
    recipe = load_recipe(path)
    assert recipe.model.weights is None
    assert recipe.datasets[0].kind == kind


def test_a_later_recipe_is_in_the_comments_of_the_first() -> None:
    rows = EXAMPLES["prompt_completion"]
    text = (RECIPES / f"{rows.recipe}.yaml").read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any(rows.later in line for line in comments)
    assert load_recipe(RECIPES / f"{rows.later}.yaml").model.weights is not None
