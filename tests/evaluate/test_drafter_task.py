"""The task `drafter`: counts of accepted drafts, on the prompts of held-out examples."""

import pytest
import torch

from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate.drafter_task import NEW_TOKENS, drafter_task, prompts_of
from seektune.evaluate.task import TaskScore
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.sequence import IGNORE_INDEX, Batch
from tests.conftest import DSPARK

PROMPTS = [[5, 6, 7], [9], list(range(40))]


def copying(model: DeepseekV4ForCausalLM) -> DeepseekV4ForCausalLM:
    """A model that always repeats the last token, whatever its blocks do."""
    with torch.no_grad():
        for name, x in model.named_parameters():
            if name.endswith(("wo_b.weight", "w2", "w2.weight")):
                x.zero_()
        model.embed.weight.copy_(torch.eye(*model.embed.weight.shape, dtype=x.dtype) * 10)
        model.head.weight.copy_(torch.eye(*model.embed.weight.shape, dtype=x.dtype) * 10)
        model.norm.weight.fill_(1.0)
    return model


def run(model: DeepseekV4ForCausalLM, prompts=PROMPTS) -> TaskScore:
    return drafter_task(model.config, prompts).run(model, load_tokenizer(512), 8192)


@pytest.mark.slow
def test_a_drafter_that_is_always_right(toy_model):
    model = copying(toy_model(drafter=True, **DSPARK | {"dspark_markov_rank": 32}))
    with torch.no_grad():
        model.mtp[-1].norm.weight.zero_()
        model.mtp[-1].markov_head.markov_w1.weight.copy_(model.embed.weight)
        model.mtp[-1].markov_head.markov_w2.weight.copy_(model.head.weight)
    score = run(model, [[5, 6, 7], [9]])
    # 31 tokens after the first one in steps of six; the sixth step is cut off after one, and does not count
    assert score.metrics["accepted_length"].value == 6
    assert score.metrics["accepted_1"].value == score.metrics["accepted_5"].value == 1
    assert score.counts["steps"] == 2 * 5


@pytest.mark.slow
def test_a_drafter_that_is_always_wrong(toy_model):
    model = copying(toy_model(drafter=True, **DSPARK | {"dspark_markov_rank": 32}))
    with torch.no_grad():
        model.mtp[-1].norm.weight.zero_()
        model.mtp[-1].markov_head.markov_w1.weight.copy_(-model.embed.weight)
        model.mtp[-1].markov_head.markov_w2.weight.copy_(model.head.weight)
    score = run(model, [[5, 6, 7], [9]])
    assert score.metrics["accepted_length"].value == 1
    assert score.metrics["accepted_1"].value == 0
    assert score.counts["steps"] == 2 * (NEW_TOKENS - 1)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, DSPARK])
def test_counts_agree_with_each_other(toy_model, changes):
    model = toy_model(drafter=True, **changes)
    score = run(model)
    shares = [score.metrics[name].value for name in score.metrics if name != "accepted_length"]
    assert len(shares) == (5 if changes else 1)
    assert shares == sorted(shares, reverse=True)
    assert score.n == 3
    again = TaskScore.from_dict(score.task, score.to_dict())
    assert again.lines() == score.lines()
    assert score.since(score)["accepted_length"].difference == 0


def test_prompts_are_what_comes_before_the_taught_tokens():
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 0], [7, 8, 9, 10, 11, 12, 13]])
    documents = torch.tensor([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1]])
    taught = torch.tensor([[0, 0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    batch = Batch(tokens, torch.where(taught, tokens, IGNORE_INDEX), documents)
    assert prompts_of([batch]) == [[1, 2], [4]]
    assert prompts_of([batch, batch], limit=2) == [[1, 2], [1, 2]]


def test_a_model_without_a_drafter(toy_config):
    config = toy_config(num_nextn_predict_layers=0, compress_ratios=[0, 4, 128, 4])
    with pytest.raises(ValueError, match="neither an MTP block nor DSpark stages"):
        drafter_task(config, PROMPTS)
    with pytest.raises(ValueError, match="at least one prompt"):
        drafter_task(toy_config(), [])


def test_drafters_of_different_sizes_are_not_compared(toy_model, toy_config):
    task = drafter_task(toy_config(**DSPARK), PROMPTS)
    with pytest.raises(ValueError, match="drafts of 1 and of 5 tokens"):
        task.run(toy_model(), load_tokenizer(512), 8192)
