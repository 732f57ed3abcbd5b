"""What of a recipe may not change when a run resumes."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from seektune.recipe.load import load_recipe
from seektune.recipe.recipe import Recipe
from seektune.run.build import check_recipe_optimizer, meta_model
from seektune.run.resume import differences
from tests.places import TINY

FEWEST: dict[str, Any] = {"model": {"preset": "tiny"}, "batch": {"global_size": 4, "length": 8}, "steps": 9}
"""The keys that a recipe must have."""
SECTIONS: dict[str, dict[str, Any]] = {
    "few": {},
    "stages": {"batch": {**FEWEST["batch"], "stages": [{"from_step": 3}]}},
    "groups": {"optimizer": {"name": "muon", "groups": [{"pattern": "embed"}]}},
    "datasets": {"data": [{"kind": "text", "path": "a"}, {"kind": "chat", "path": "b"}]},
    "pairs": {"data": {"kind": "preference", "path": "a"}, "objective": {"name": "dpo"}},
    "rewards": {
        "objective": {"name": "grpo", "reward": [{"metric": "exact_match"}, {"name": "plugin", "plugin": "a"}]}
    },
}
"""Sections in which other keys have defaults, by a name for each case."""


def saved(*words: str) -> dict[str, Any]:
    """As a checkpoint has it."""
    return load_recipe(TINY, [*words]).model_dump(mode="json")


def test_another_optimizer_or_schedule_is_another_run() -> None:
    recipe = load_recipe(TINY)
    assert differences(recipe, saved()) == []
    assert differences(recipe, saved("--optimizer.name=muon")) == ["optimizer"]
    assert differences(recipe, saved("--schedule.name=wsd")) == ["schedule.name"]
    assert differences(load_recipe(TINY, ["--optimizer.name=muon"]), saved("--optimizer.name=muon")) == []


def without_each_default(whole: Any, written: Any) -> Iterator[tuple[str, Any]]:
    """What was saved without one of the keys that were not written, and that key; each of them in turn."""
    if isinstance(whole, list):
        for number, (item, its) in enumerate(zip(whole, written, strict=True)):
            for key, less in without_each_default(item, its):
                yield f"{number}.{key}", [*whole[:number], less, *whole[number + 1 :]]
    if not isinstance(whole, dict):
        return
    for key, value in whole.items():
        if key not in written:
            yield key, {other: each for other, each in whole.items() if other != key}
        within = without_each_default(value, written.get(key, {} if isinstance(value, dict) else value))
        for name, less in within:
            yield f"{key}.{name}", {**whole, key: less}


@pytest.mark.parametrize("name", SECTIONS)
def test_runs_from_before_any_key_was_added_resume(name: str) -> None:
    written = FEWEST | SECTIONS[name]
    recipe = Recipe.model_validate(written)
    whole = recipe.model_dump(mode="json")
    cases = dict(without_each_default(whole, written))
    assert len(cases) > 100
    assert {key for key, less in cases.items() if differences(recipe, less)} == set()
    assert differences(recipe, deepcopy(written)) == [], "without all of them"


def test_a_key_that_was_added_has_changed_if_it_is_not_its_default_now() -> None:
    before = saved()
    del before["schedule"]["decay_share"]
    del before["loss"]["z_weight"]
    del before["batch"]["stages"]
    assert differences(load_recipe(TINY, ["--schedule.decay_share=0.5"]), before) == ["schedule.decay_share"]
    assert differences(load_recipe(TINY, ["--loss.z_weight=1e-4"]), before) == ["loss.z_weight"]
    assert differences(load_recipe(TINY, ["--batch.stages=[{from_step: 5}]"]), before) == ["batch.stages"]


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


CHAT: dict[str, Any] = {**FEWEST, "data": {"kind": "chat", "path": "rows.jsonl"}}


@pytest.mark.parametrize(
    ("section", "changes", "keys"),
    [
        ("batch", {}, []),
        ("batch", {"global_size": 8, "pack": True}, ["batch.global_size", "batch.pack"]),
        ("batch", {"stages": [{"from_step": 2, "length": 32}]}, ["batch.stages"]),
        ("data", {"columns": {"messages": "talk"}}, ["data.columns"]),
        ("data", {"kind": "prompt_completion"}, ["data"]),
        ("data", {"teach": "last"}, ["data.teach"]),
    ],
)
def test_what_differs_is_named_by_its_keys(section: str, changes: dict[str, Any], keys: list[str]) -> None:
    before = Recipe.model_validate(CHAT).model_dump(mode="json")
    now = Recipe.model_validate({**CHAT, section: {**CHAT[section], **changes}})
    assert differences(now, before) == keys
