"""What of a recipe may not change when a run resumes."""

from typing import Any

from seektune.recipe.load import load_recipe
from seektune.run.resume import differences
from tests.places import TINY


def saved(*words: str) -> dict[str, Any]:
    """As a checkpoint has it."""
    return load_recipe(TINY, [*words]).model_dump(mode="json")


def test_another_optimizer_or_schedule_is_another_run() -> None:
    recipe = load_recipe(TINY)
    assert differences(recipe, saved()) == []
    assert differences(recipe, saved("--optimizer.name=muon")) == ["optimizer"]
    assert differences(recipe, saved("--schedule.name=wsd")) == ["schedule"]
    assert differences(load_recipe(TINY, ["--optimizer.name=muon"]), saved("--optimizer.name=muon")) == []


def test_runs_from_before_keys_were_added_resume() -> None:
    before = saved()
    del before["optimizer"]["groups"]
    del before["schedule"]["decay_share"]
    assert differences(load_recipe(TINY), before) == []
    assert differences(load_recipe(TINY, ["--schedule.decay_share=0.5"]), before) == ["schedule"]
