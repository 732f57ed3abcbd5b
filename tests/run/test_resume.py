"""What of a recipe may not change when a run resumes."""

from typing import Any

import pytest

from seektune.recipe.load import load_recipe
from seektune.run.build import check_recipe_optimizer, meta_model
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


def test_groups_of_a_drafter_are_those_of_its_own_parameters() -> None:
    words = ["--model.preset=tiny-0731", "--model.weights=some/weights", "--train.drafter=true", "--loss.mtp_weight=0"]
    recipe = load_recipe(TINY, [*words, "--optimizer.groups=[{pattern: markov_head, lr: 1e-4}]"])
    config = recipe.model.architecture()
    assert config is not None
    check_recipe_optimizer(recipe, lambda: meta_model(recipe, config))
    other = load_recipe(TINY, [*words, "--optimizer.groups=[{pattern: ^embed, lr: 1e-4}]"])
    with pytest.raises(ValueError, match="pattern \\^embed matches no trainable parameter"):
        check_recipe_optimizer(other, lambda: meta_model(other, config))


def test_a_schedule_that_never_falls_is_refused() -> None:
    words = ["--schedule.name=wsd", "--steps=20", "--schedule.warmup_steps=0"]
    with pytest.raises(
        ValueError, match=r"schedule\.decay_share leaves wsd no step to fall in of 20; raise it or steps"
    ):
        load_recipe(TINY, [*words, "--schedule.decay_share=0.05"])
    assert load_recipe(TINY, [*words, "--schedule.decay_share=0.1"]).schedule.decay_share == 0.1
