"""docs/pretraining.md and the recipes for pretraining: their commands run, at fewer steps, and do as they say."""

import json
import re
from pathlib import Path

import pytest

from seektune.data.datasets.shakespeare import write_shakespeare
from seektune.recipe.load import load_recipe
from tests.places import ROOT

from .guides import commands, printed

PAGE = "docs/pretraining.md"
RECIPES = ROOT / "examples" / "llm_pretrain" / "deepseek_v4"
FEW = ("--steps=2", "--checkpoint.every=null", "--logging.to=[]")
PLAY = "\n\n".join(f"ROMEO:\nA line of a play, number {number}." for number in range(2000))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository's recipes."""
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.mark.slow
def test_the_commands_of_the_page_run(place: Path) -> None:
    said = []
    for command in (each for each in commands(PAGE) if not each.hardware):
        said.append(printed(command, place, FEW))
        if command.words[2] == "example":
            write_shakespeare(place / "shakespeare", PLAY)  # a twentieth of it
    plays, preview, training, generated, plan = said
    assert "130 training and 14 held-out documents, TinyShakespeare" in plays
    assert "ROMEO" in preview
    assert re.search(r"ngram after training: examples \d+ with .* taught tokens, loss \d\.\d+", training)
    assert generated
    assert "fits" in plan
    score = json.loads((place / "runs/plays/report.json").read_text())["evals"][0]["comparisons"][0]
    assert score["reference"]["label"] == "5-gram model"
    assert 0 < score["reference"]["value"] < score["after"]["value"]
    report = (place / "runs/plays/report.html").read_text(encoding="utf-8")
    assert "largest drift of a bias" in report


def test_the_numbers_of_the_report_are_those_of_the_flash_recipe() -> None:
    recipe = load_recipe(RECIPES / "deepseek_v4_flash_pretrain.yaml")
    sizes = [(first, stage.global_size * stage.length) for first, stage in recipe.batch.each_stage()]
    assert sizes == [(1, 18_874_368), (4000, 37_748_736), (10000, 75_497_472), (400000, 75_497_472)]
    ends = [first for first, _ in sizes[1:]] + [recipe.steps + 1]
    tokens = sum((end - first) * size for (first, size), end in zip(sizes, ends, strict=True))
    assert tokens == pytest.approx(32e12, rel=1e-3)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.schedule.warmup_steps) == ("muon", 2.7e-4, 2000)
    loss = recipe.loss
    assert (loss.mtp_weight, loss.mtp_decay_weight, loss.balance_weight, loss.bias_update_speed) == (
        0.3,
        0.1,
        1e-4,
        1e-3,
    )
    assert (recipe.model.weights, recipe.parallel.least_world()) == (None, 64)
