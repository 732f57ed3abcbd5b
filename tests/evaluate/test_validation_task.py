"""The held-out examples as a task: numbers by hand, by example, packed or not."""

import json
import math

import pytest
import torch

from seektune.data.answers import joined
from seektune.data.example import Example
from seektune.data.packing import collate
from seektune.evaluate.loss import validation_loss
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import TaskScore
from seektune.evaluate.validation_task import ValidationTask
from seektune.parallel.model import ParallelModel

GENERATOR = torch.Generator().manual_seed(4)


def example(length: int, read: int, vocab_size: int = 60) -> Example:
    tokens = torch.randint(3, vocab_size, (length,), generator=GENERATOR).tolist()
    return Example(tokens, [i >= read for i in range(length)], "x")


EXAMPLES = [example(9, 4), example(5, 1), example(12, 2), example(3, 3), example(7, 0)]
"""The fourth teaches nothing; the fifth also its first token, which nobody predicts."""
SINGLE = [collate([[EXAMPLES[0]], [EXAMPLES[1]]], 2), collate([[each] for each in EXAMPLES[2:]], 2)]
PACKED = [collate([EXAMPLES[:2], EXAMPLES[2:3]], 2, length=16), collate([EXAMPLES[3:]], 2, length=16)]


def by_hand(table: torch.Tensor, each: Example) -> tuple[float, int, int]:
    """Loss, first choices and number of the taught tokens of an example."""
    log_p = torch.log_softmax(table.detach().double(), dim=-1)
    places = [t for t in range(1, len(each.tokens)) if each.taught[t]]
    losses = [-float(log_p[each.tokens[t - 1], each.tokens[t]]) for t in places]
    hits = [int(log_p[each.tokens[t - 1]].argmax()) == each.tokens[t] for t in places]
    return math.fsum(losses), sum(hits), len(places)


@pytest.mark.parametrize("batches", [SINGLE, PACKED], ids=["single", "packed"])
def test_numbers_are_those_of_each_example(bigram, tokenizer, batches):
    with torch.no_grad():
        # some first choices are right
        for each in EXAMPLES:
            bigram.table[each.tokens[-2], each.tokens[-1]] = 9.0
    told: list[tuple[int, int]] = []
    score = ValidationTask(batches).run(bigram, tokenizer, 8192, lambda done, of: told.append((done, of)))
    expected = [found for each in EXAMPLES if (found := by_hand(bigram.table, each))[2]]
    losses, hits, sizes = (list(each) for each in zip(*expected, strict=True))
    assert score.outcomes["losses"] == pytest.approx(losses, rel=1e-5)
    assert (score.outcomes["hits"], score.outcomes["tokens_each"]) == (hits, sizes)
    assert 0 < sum(hits) < sum(sizes)
    assert (score.n, score.counts["tokens"]) == (4, sum(sizes))
    assert score.metrics["loss"].value == pytest.approx(math.fsum(losses) / sum(sizes), rel=1e-5)
    assert score.metrics["loss"].value == pytest.approx(validation_loss(bigram, batches), rel=1e-6)
    assert score.metrics["perplexity"].value == pytest.approx(math.exp(score.metrics["loss"].value))
    assert score.metrics["accuracy"] == Estimate.of_ratio(hits, sizes)
    assert told == [(1, 2), (2, 2)]
    assert not bigram.graded


def test_a_spread_model_has_the_same_numbers(toy_model, tokenizer):
    model = toy_model(torch.float32)
    one = ValidationTask(SINGLE).run(model, tokenizer, 8192)
    other = ValidationTask(SINGLE).run(ParallelModel.alone(model), tokenizer, 8192)
    assert other.outcomes["hits"] == one.outcomes["hits"]
    assert other.outcomes["losses"] == pytest.approx(one.outcomes["losses"], rel=1e-6)


def test_several_datasets_have_a_loss_of_their_own(bigram, tokenizer):
    silent = [collate([[EXAMPLES[3]]], 2)]
    parts = {"one": SINGLE[:1], "two": SINGLE[1:], "silent": silent}
    task = ValidationTask.of([*SINGLE, *silent], None, parts)
    score = task.run(bigram, tokenizer, 8192)
    own = {f"{name}_{metric}" for name in ("one", "two") for metric in ("loss", "perplexity")}
    assert score.metrics.keys() == task.info.metrics.keys() == {"loss", "perplexity", "accuracy"} | own
    for name in ("one", "two"):
        alone = ValidationTask(parts[name]).run(bigram, tokenizer, 8192)
        assert score.metrics[f"{name}_loss"] == alone.metrics["loss"]
        assert score.metrics[f"{name}_perplexity"] == alone.metrics["perplexity"]
    again = TaskScore.from_dict(task.info, json.loads(json.dumps(score.to_dict())))
    assert score.since(again)["two_loss"].difference == 0


@pytest.mark.parametrize("pack", [False, True])
def test_only_chosen_answers_count_where_answers_are_compared(bigram, tokenizer, pack):
    pair = joined(EXAMPLES[:2], ("chosen", "rejected"))
    mismatched = joined([EXAMPLES[4], EXAMPLES[0]], ("chosen", "mismatched"))
    bad = joined([EXAMPLES[2], EXAMPLES[1]], ("rejected", "mismatched"))
    rows = [[pair, mismatched, bad]] if pack else [[each] for each in (pair, mismatched, bad)]
    batch = collate(rows, 2)
    score = ValidationTask.of([batch], None, {}).run(bigram, tokenizer, 8192)
    expected = [by_hand(bigram.table, EXAMPLES[i]) for i in (0, 4)]
    assert score.outcomes["losses"] == pytest.approx([loss for loss, _, _ in expected], rel=1e-5)
    assert score.outcomes["hits"] == [hits for _, hits, _ in expected]
    assert score.outcomes["tokens_each"] == [tokens for _, _, tokens in expected]
    none = collate([[bad]], 2)
    task = ValidationTask.of([batch, none], None, {"some": [batch], "none": [none]})
    assert list(task.datasets) == ["some"]
    with pytest.raises(ValueError, match="no held-out row has a chosen or desirable answer"):
        ValidationTask.of([none], None, {})


def test_the_baseline_is_always_the_most_frequent_taught_token():
    batch = collate([[Example([5, 7, 7, 9], [False, True, True, True], "a")], [Example([7, 7], [True, False], "b")]], 2)
    baseline = ValidationTask([batch]).info.metrics["accuracy"].baseline
    assert baseline.value == 2 / 3


def test_a_model_that_gives_no_number_is_refused(bigram, tokenizer):
    with torch.no_grad():
        bigram.table[:] = torch.nan
    with pytest.raises(ArithmeticError, match="held-out examples is not a finite number"):
        ValidationTask(SINGLE).run(bigram, tokenizer, 8192)


def test_a_score_comes_back_from_json_and_is_compared_by_examples(bigram, tokenizer):
    task = ValidationTask(SINGLE)
    before = task.run(bigram, tokenizer, 8192)
    with torch.no_grad():
        for each in EXAMPLES:
            for a, b in zip(each.tokens, each.tokens[1:], strict=False):
                bigram.table[a, b] += 5.0
    after = task.run(bigram, tokenizer, 8192)
    changes = after.since(TaskScore.from_dict(task.info, json.loads(json.dumps(before.to_dict()))))
    assert changes.keys() == {"loss", "accuracy"}
    for name, change in changes.items():
        assert change.difference == pytest.approx(after.metrics[name].value - before.metrics[name].value)
    assert changes["loss"].high < 0 < changes["accuracy"].low
    # of four examples that all differ one way, two of sixteen patterns of signs reach as far
    assert changes["loss"].p_value == pytest.approx(2 / 16, rel=0.15)
