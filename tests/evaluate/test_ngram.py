"""The n-gram model against its definition and by hand, and the task that compares a model with it."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch

from seektune.data.config import BatchConfig
from seektune.data.example import Example
from seektune.data.examples import ExampleList
from seektune.data.loader import in_order
from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate import ngram_task
from seektune.evaluate.ngram import NgramModel, count_grams
from seektune.evaluate.ngram_task import NgramTask
from seektune.evaluate.validation_task import ValidationTask
from seektune.model.head import TokenScores
from seektune.sequence import IGNORE_INDEX, Batch


def made(seed: int, count: int = 30) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.choice([0, 1, 1, 2, 2, 2, 3]) for _ in range(generator.randrange(1, 20))] for _ in range(count)]


def kneser_ney(documents: Sequence[Sequence[int]], order: int, vocab_size: int) -> NgramModel:
    return NgramModel.kneser_ney(count_grams(documents, order, vocab_size))


def witten_bell(documents: Sequence[Sequence[int]], order: int, vocab_size: int) -> NgramModel:
    return NgramModel.witten_bell(count_grams(documents, order, vocab_size))


def test_bigrams_are_those_of_the_formula() -> None:
    model = kneser_ney([[0, 1, 0, 1, 2]], order=2, vocab_size=4)
    # pairs 01 twice, 10 and 12 once: D = n1 / (n1 + 2 n2) = 2 / 4
    # below, tokens are counted by the different tokens before them: 0 and 2 once, 1 once, D = 3 / 3 = 1
    below = (0 + 1 * 3 * 0.25) / 3
    expected = [(2 - 0.5 + 0.5 * 1 * below) / 2, (1 - 0.5 + 0.5 * 2 * below) / 2]
    assert model.losses([0, 1, 2]) == pytest.approx([-math.log(each) for each in expected])


def test_bigrams_with_back_off_are_those_of_the_formula() -> None:
    model = witten_bell([[0, 1, 0, 1, 2]], order=2, vocab_size=4)
    # one kind of token after 0, two after 1, three without a history
    first = (2 + 3 / 4) / (5 + 3)
    second = (1 + 3 / 4) / (5 + 3)
    expected = [(2 + 1 * first) / (2 + 1), (1 + 2 * second) / (2 + 2)]
    assert model.losses([0, 1, 2]) == pytest.approx([-math.log(each) for each in expected])


@pytest.mark.parametrize("smoothed", [kneser_ney, witten_bell])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_of_all_tokens_sum_to_one_after_any_history(
    order: int, smoothed: Callable[[Sequence[Sequence[int]], int, int], NgramModel]
) -> None:
    model = smoothed(made(0), order, 6)
    for history in ([1], [2, 2], [3, 1, 2, 2], [5, 5, 5, 5], [1, 2, 3, 0, 5]):
        total = sum(math.exp(-model.losses([*history, token])[-1]) for token in range(6))
        assert total == pytest.approx(1)


def test_grams_do_not_cross_documents() -> None:
    pairs = [[0, 1], [2, 3], [2, 3], [1, 3], [1, 3], [0, 2]]
    joined = kneser_ney([[token for pair in pairs for token in pair]], order=2, vocab_size=4).losses([1, 2])
    apart = kneser_ney(pairs, order=2, vocab_size=4).losses([1, 2])
    assert joined[0] < apart[0]


def test_longer_grams_know_more_of_a_text_with_long_patterns() -> None:
    text = [0, 0, 1, 0, 1, 1] * 40
    losses = [sum(kneser_ney([text], order, 2).losses(text)) for order in (1, 2, 3, 5)]
    assert losses == sorted(losses, reverse=True)


class Guess:
    """Gives every token the same probability."""

    def score(self, batch: Batch) -> TokenScores:
        taught_BT = torch.cat([batch.labels[:, 1:] != IGNORE_INDEX, torch.zeros_like(batch.labels[:, :1]) > 0], dim=1)
        ahead_BT = torch.cat([batch.documents[:, 1:], torch.zeros_like(batch.documents[:, :1])], dim=1)
        taught_BT &= ahead_BT == batch.documents
        return TokenScores(taught_BT * math.log(6), torch.zeros_like(taught_BT))


def examples(documents: Sequence[Sequence[int]]) -> ExampleList:
    return ExampleList([Example(tokens, [True] * len(tokens), "row") for tokens in documents])


@pytest.mark.parametrize("pack", [False, True])
def test_the_task_scores_the_same_tokens_with_both(pack: bool) -> None:
    training = made(1)
    held_out = [document for document in made(2, 12) if len(document) > 1]
    batches = in_order(examples(held_out), BatchConfig(global_size=4, micro_size=4, length=24, pack=pack), pad_id=0)
    task = NgramTask(ValidationTask.of(batches, None, {}), lambda: training, vocab_size=6)
    score = task.run(Guess(), load_tokenizer(322), 64)
    model = kneser_ney(training, 5, 6)
    expected = [loss for document in held_out for loss in model.losses(document)]
    baseline = score.task.metrics["loss"].baseline
    assert baseline is not None
    assert baseline.value == pytest.approx(sum(expected) / len(expected))
    assert score.counts["tokens"] == len(expected)
    back_off = [loss for document in held_out for loss in witten_bell(training, 5, 6).losses(document)]
    assert f"Witten-Bell back-off its loss is {sum(back_off) / len(back_off):.4f}" in score.task.about
    assert score.metrics["loss"].value == pytest.approx(math.log(6))


def test_too_many_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_task, "MOST_TOKENS", 10)
    batches = in_order(examples([[1, 2, 3]]), BatchConfig(global_size=1, length=8), pad_id=0)
    task = NgramTask(ValidationTask.of(batches, None, {}), lambda: made(1), vocab_size=6)
    with pytest.raises(ValueError, match="ngram counts at most 10 training tokens; remove the task"):
        _ = task.info
