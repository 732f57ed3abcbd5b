"""Every shipped recipe loads, and says what its page promises."""

import json
import re
from pathlib import Path

import pytest

from seektune.checkpoint.formats import FORMATS
from seektune.lora.build import add_adapters
from seektune.lora.state import adapter_state
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.quantized import quantize_modules
from seektune.recipe.document import read_document
from seektune.recipe.load import dump_recipe, load_recipe, read_recipe
from seektune.recipe.recipe import Recipe
from tests.places import FLASH, RECIPES, ROOT, TINY

EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_recipe_loads_and_dumps(path: Path, tmp_path: Path) -> None:
    loaded = read_recipe(path)
    assert loaded.notes == ()
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(loaded.recipe), encoding="utf-8")
    assert load_recipe(again) == loaded.recipe


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_editors_find_the_schema_and_it_takes_the_recipe(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    text = path.read_text(encoding="utf-8")
    said = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    check = jsonschema.Draft202012Validator(json.loads((path.parent / said).read_text(encoding="utf-8")))
    # numbers such as 1e-5 as editors read them
    recipe = read_document(path).plain()
    assert list(check.iter_errors(recipe)) == []
    assert list(check.iter_errors(recipe | {"parallel": "auto"})) == []
    assert list(check.iter_errors(recipe | {"parallel": "many"})) != []
    assert list(check.iter_errors(recipe | {"optimiser": {}})) != []


def test_there_are_recipes_to_test() -> None:
    assert {FLASH, TINY} <= set(EXAMPLES)


def test_the_published_job_is_what_it_says() -> None:
    recipe = load_recipe(FLASH)
    assert (recipe.model.preset, recipe.model.weights) == ("flash", "deepseek-ai/DeepSeek-V4-Flash")
    assert (recipe.batch.global_size, recipe.steps, recipe.model.dtype) == (256, 100, "bf16")
    adamw = recipe.optimizer
    assert (adamw.lr, adamw.betas, adamw.weight_decay, adamw.master) == (1e-5, (0.9, 0.95), 0.1, "fp32")
    assert (recipe.parallel.pp_size, recipe.parallel.ep_size, recipe.parallel.least_world()) == (4, 32, 128)


READING = [path for path in EXAMPLES if not re.search("_grpo|_opd", path.stem)]
"""Recipes that only read rows; answers that are sampled have a row each, of at least `objective.max_new_tokens`."""


@pytest.mark.parametrize("path", READING, ids=[path.stem for path in READING])
def test_every_documented_override_is_accepted(path: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    overrides = (
        "--model.preset=tiny --optimizer.lr=1e-4 --steps=20 --batch.global_size=8 --batch.micro_size=2 "
        "--batch.length=128 --batch.pack=true --checkpoint.every=50 --evaluate.limit=500 "
        f"--run_dir={tmp_path} --model.weights={weights} --data.path={tmp_path}"
    ).split()
    recipe = load_recipe(path, overrides)
    assert (recipe.model.preset, recipe.model.weights) == ("tiny", str(weights))
    assert (recipe.optimizer.lr, recipe.steps, recipe.run_dir) == (1e-4, 20, str(tmp_path))
    assert (recipe.batch.global_size, recipe.batch.micro_size, recipe.batch.length) == (8, 2, 128)
    assert recipe.batch.pack is True
    assert (recipe.checkpoint.every, recipe.evaluate.limit, str(recipe.data.path)) == (50, 500, str(tmp_path))


def test_the_published_job_shrinks_to_one_process() -> None:
    overrides = ["--model.preset=tiny", "--parallel.pp_size=1", "--parallel.ep_size=1", "--steps=3"]
    loaded = read_recipe(FLASH, overrides)
    assert loaded.recipe.model.weights is None
    assert loaded.recipe.parallel.least_world() == 1
    assert loaded.recipe.schedule.warmup_steps < 3
    assert any("random weights" in note for note in loaded.notes)


def test_the_demo_is_tiny_and_explains_every_line() -> None:
    recipe: Recipe = load_recipe(TINY)
    assert (recipe.model.preset, recipe.model.weights, recipe.parallel.least_world()) == ("tiny", None, 1)
    settings = [line for line in TINY.read_text().splitlines() if line.startswith("  ") and ": " in line]
    plain = [line for line in settings if "#" not in line and not line.startswith(("  ep_size", "  cp_size"))]
    assert plain == []


LORA = sorted(RECIPES.glob("*_lora*.yaml"))


@pytest.mark.parametrize("path", LORA, ids=[path.stem for path in LORA])
def test_lora_recipes_match_the_tiny_model_as_they_say(path: Path) -> None:
    """Their targets exist, the frozen weights are quantized, and nothing touches the gates."""
    overrides = ["--model.preset=tiny", "--parallel.pp_size=1", "--parallel.ep_size=1", "--steps=12"]
    recipe = read_recipe(path, overrides).recipe
    assert recipe.model.quantized
    assert recipe.loss.bias_update_speed == 0
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"), device="meta")
    quantize_modules(model, FORMATS["released"].kind)
    names = add_adapters(model, recipe.lora, mtp=True, seed=0)
    assert len(names) >= 5 * 6
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapter_state(model))


def test_the_lora_recipes_are_these() -> None:
    assert [path.stem for path in LORA] == [
        "deepseek_v4_flash_chat_lora",
        "deepseek_v4_flash_dpo_lora",
        "deepseek_v4_flash_grpo_lora",
        "deepseek_v4_flash_hellaswag_lora",
        "deepseek_v4_flash_hellaswag_lora_experts",
        "deepseek_v4_flash_opd_lora",
        "deepseek_v4_tiny_lora",
    ]
