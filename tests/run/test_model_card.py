"""Model cards: the Hub can read them, they say what is known and nothing else, and nobody's own is overwritten."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from seektune.data.datasets.hellaswag import HellaswagConfig
from seektune.data.question import Question
from seektune.evaluate.choice_task import ChoiceTask
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import TaskScore
from seektune.io.atomic_dir import CARD, complete_folder
from seektune.recipe.load import dump_recipe, load_recipe
from seektune.recipe.recipe import Recipe
from seektune.run.model_card import converted_card, is_ours, merged_card, put_card, run_card
from tests.places import FLASH, FLASH_LORA

FACTS = [
    ("model", "DeepSeek-V4 from deepseek-ai/DeepSeek-V4-Flash"),
    ("data", "hellaswag, 8 training rows from the Hub, cached in /home/me/.cache/seektune/hellaswag"),
    ("batch", "a | b"),
]


def score(right: str) -> dict[str, TaskScore]:
    """Scores by task, as a run has them."""
    share = right.count("1") / len(right)
    found = Estimate(share, share / 2, (1 + share) / 2)
    task = ChoiceTask("hellaswag", "HellaSwag", [Question("a", ("b", "c", "d", "e"), 0, "x")], HellaswagConfig().card())
    outcomes = {"right": right, "right_norm": right}
    counts = {"n": len(right), "loss": 2.5, "loss_tokens": 100}
    return {"hellaswag": TaskScore(task.info, {"acc": found, "acc_norm": found}, counts, outcomes)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    plain = {"seconds": 2.0, "loss": 3.0}
    steps = [plain | {"step": n, "total_tokens": 100 * n, "memory_gb": 0.5 + n} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (folder / "validation.jsonl").write_text('{"step": 0, "loss": 3.25}\n{"step": 2, "loss": 1.75}\n')
    return folder


def written(folder: Path, recipe: Recipe, after: dict[str, TaskScore] | None = None) -> ModelCard:
    """The card as the Hub's own library reads it; bad metadata raise there."""
    return ModelCard(run_card(folder, recipe, FACTS, score("10000000"), after or {}), ignore_metadata_errors=False)


def test_the_hub_reads_what_a_run_knows(run: Path) -> None:
    card = written(run, load_recipe(FLASH), score("11000000"))
    data = card.data
    assert (data.base_model, data.license) == ("deepseek-ai/DeepSeek-V4-Flash", "mit")
    assert data.library_name == "transformers"
    assert (data.datasets, data.language, data.pipeline_tag) == (["Rowan/hellaswag"], "en", "text-generation")
    assert {"deepseek_v4", "seektune"} <= set(data.tags or [])
    assert data.model_name == "mine"
    results = {each.metric_type: each for each in data.eval_results or []}
    assert results.keys() == {"acc", "acc_norm"}
    assert results["acc"].metric_value == 0.25
    assert results["acc"].metric_args == {"questions": 8, "interval_95": [0.125, 0.625]}
    assert results["acc"].dataset_type == "Rowan/hellaswag"


def test_a_card_does_not_say_where_rows_lie_on_the_machine(run: Path) -> None:
    text = str(written(run, load_recipe(FLASH)))
    assert "| data | hellaswag, 8 training rows from the Hub |" in text
    assert "/home/me" not in text


def test_the_text_says_base_data_course_results_loading_and_limits(run: Path) -> None:
    recipe = load_recipe(FLASH)
    text = str(written(run, recipe, score("11000000")))
    sections = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["Base", "Data", "Training", "Results", "Files", "Load", "Limits"]
    for said in (
        "| acc | 12.5% (6.2% to 56.2%) | 25.0% (12.5% to 62.5%) | 1 |",
        "| validation loss | 3.2500 → 1.7500 |",
        "| tokens | 200 |",
        "| peak memory of a process | 2.5 GB |",
        "| batch | a / b |",
        "vllm serve served",
        "--model-path served",
        "AutoModelForCausalLM",
        "DeepseekV4ForCausalLM",
        f"<details><summary>The whole recipe</summary>\n\n```yaml\n{dump_recipe(recipe)}```",
    ):
        assert said in text


def test_what_is_unknown_is_left_out(run: Path, tmp_path: Path) -> None:
    recipe = load_recipe(FLASH, ["--model.preset=tiny", "--parallel.pp_size=1", f"--data.path={tmp_path}"])
    card = written(run, recipe)
    assert (card.data.base_model, card.data.license, card.data.datasets, card.data.language) == (None,) * 4
    assert card.data.eval_results is None
    assert "license" not in card.data.to_dict()
    assert "Random weights of the architecture `tiny`" in card.text
    (run / "metrics.jsonl").unlink()
    assert "tokens" not in written(run, recipe).text.split("## Training")[1].split("<details>")[0]


def test_an_adapter_is_one(run: Path) -> None:
    card = written(run, load_recipe(FLASH_LORA), score("11000000"))
    assert card.data.library_name == "peft"
    assert "lora" in (card.data.tags or [])
    assert 'from_pretrained("deepseek-ai/DeepSeek-V4-Flash", quantized=True)' in card.text


def test_a_conversion_keeps_what_stays_true(run: Path, tmp_path: Path) -> None:
    first = written(run, load_recipe(FLASH), score("11000000"))
    source = tmp_path / "source"
    source.mkdir()
    assert put_card(source, str(first))
    text = converted_card(source, "released")
    assert text is not None
    again = ModelCard(text, ignore_metadata_errors=False)
    assert again.data.to_dict() == first.data.to_dict()
    assert "FP4 experts" in text
    assert "vllm serve FOLDER" in text
    assert "bf16 safetensors" not in text
    parts = [str(card).split("## Base")[1].split("## Files")[0] for card in (first, text)]
    assert parts[0] == parts[1]
    (source / CARD).write_text("---\nlicense: mit\n---\n# Mine\n")
    assert converted_card(source, "released") is None
    (source / CARD).unlink()
    assert ModelCard(str(converted_card(source, "bf16"))).data.license is None


def test_a_merge_tells_of_its_adapter(run: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    base = "deepseek-ai/DeepSeek-V4-Flash"
    bare = ModelCard(merged_card(base, adapter, "merged", "bf16", 1.0), ignore_metadata_errors=False)
    assert (bare.data.base_model, bare.data.license, bare.data.eval_results) == (base, "mit", None)
    put_card(adapter, str(written(run, load_recipe(FLASH_LORA), score("11000000"))))
    card = ModelCard(merged_card(base, adapter, "merged", "mixed-fp8", 0.875), ignore_metadata_errors=False)
    assert card.data.library_name == "transformers"
    assert "87.5% of its change is kept" in card.text
    assert "before merging" in card.text
    assert "The whole recipe" in card.text


def test_nobodys_own_card_is_overwritten(run: Path, tmp_path: Path) -> None:
    text = str(written(run, load_recipe(FLASH)))
    target = tmp_path / "model"
    target.mkdir()
    assert put_card(target, text)
    assert put_card(target, text)
    assert is_ours((target / CARD).read_text(encoding="utf-8"))
    changed = text.replace("## Limits", "## Limits of mine")
    (target / CARD).write_text(changed, encoding="utf-8")
    assert not put_card(target, text)
    with complete_folder(target, replace=True) as scratch:
        (scratch / "config.json").write_text("{}")
    assert (target / CARD).read_text(encoding="utf-8") == changed
    assert (target / "config.json").exists()
