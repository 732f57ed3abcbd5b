"""What a step of a drafter's training allocates, tensor by tensor: as planned, and the same for more anchors."""

import runpy
from typing import Any

import pytest
import torch

from seektune.data.step_data import Share, StepData
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.device import DTYPES
from seektune.model.step_loss import DraftObjective
from seektune.parallel.model import ParallelModel
from seektune.planner.memory import rank_memory
from seektune.recipe.load import load_recipe
from seektune.recipe.recipe import Recipe
from seektune.run.drafter import drafter_trainer
from seektune.sequence import Batch
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.step import StepObjective, make_step_loss
from seektune.workflows.planning import job_of, layout_of
from tests.places import ROOT, TINY

Live = runpy.run_path(str(ROOT / "bench" / "live.py"))["Live"]
WORDS = ["--model.preset=tiny-0731", "--model.weights=some/weights", "--loss.mtp_weight=0", "--train.drafter=true",
         "--batch.length=192", "--batch.global_size=2", "--batch.micro_size=2"]  # fmt: skip


def recipe_of(dtype: str, anchors: int) -> Recipe:
    return load_recipe(TINY, [*WORDS, f"--model.dtype={dtype}", f"--train.drafter_anchors={anchors}"])


def planned(recipe: Recipe, config: DeepseekV4Config) -> float:
    numbers = rank_memory(layout_of(job_of(recipe, config), 1), 0).lower
    return numbers["activations"] + numbers["logits"]


def measured(recipe: Recipe, config: DeepseekV4Config) -> int:
    """Peak bytes of tensors that forward and backward make in a second step."""
    anchors = recipe.train.drafter_anchors
    torch.manual_seed(0)
    whole = DeepseekV4ForCausalLM(config, dtype=DTYPES[recipe.model.dtype], drafter=True)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_(std=0.02)
    drafter_trainer(None)(whole)
    accumulate_in_fp32(whole.parameters())
    model = ParallelModel.alone(whole)
    tokens = torch.randint(3, config.vocab_size, (2, 192), generator=torch.Generator().manual_seed(1))
    data = StepData.of([Batch(tokens, tokens, torch.ones_like(tokens))], Share(0, 1))
    loss = make_step_loss(data, recipe.loss, False, StepObjective(drafts=DraftObjective(anchors, 1, 7)))
    model.train(data.batches, loss, lambda phase: None)
    gradients = [x.grad for x in whole.parameters() if x.grad is not None]
    live: Any = Live([*whole.parameters(), *whole.buffers(), *gradients, *data.batches[0].tensors()])
    with live:
        model.train(data.batches, loss, lambda phase: None)
    return int(live.peak)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "anchors"), [("fp32", 64), ("bf16", 64), ("bf16", 160)])
def test_the_plan_counts_what_drafts_allocate(dtype: str, anchors: int) -> None:
    recipe = recipe_of(dtype, anchors)
    config = recipe.model.architecture()
    assert config is not None
    expected = planned(recipe, config)
    assert measured(recipe, config) == pytest.approx(expected, rel=0.06)
    assert planned(recipe_of(dtype, 32), config) == expected > 2 * planned(recipe_of(dtype, 4), config)
