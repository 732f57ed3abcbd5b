import math

import pytest
import torch

from seektune.data.example import Example, continuation
from seektune.evaluate.likelihood import Likelihood, by_length, likelihoods


def test_groups_are_filled_longest_first_and_hold_each_index_once():
    groups = list(by_length([3, 9, 5, 9, 2, 20], 18))
    assert groups == [[5], [1, 3], [2, 0, 4]]


@pytest.mark.parametrize("batch_tokens", [1, 12, 1000])
def test_each_taught_token_has_its_loss_and_the_first_choices_are_known(bigram, batch_tokens):
    log_p = torch.log_softmax(bigram.table.detach().double(), dim=-1)
    choice = int(log_p[7].argmax())
    sequences = [
        continuation([0, 5], [6, 9, 8], "a"),
        continuation([0, 7], [choice], "b"),
        Example([0, 3], [False, False], "nothing is taught"),
        continuation([4], [1], "c"),
    ]
    found = likelihoods(bigram, sequences, batch_tokens, pad_id=2)
    expected = [[(5, 6), (6, 9), (9, 8)], [(7, choice)], [], [(4, 1)]]
    for each, steps in zip(found, expected, strict=True):
        assert each.losses == pytest.approx([-float(log_p[a, b]) for a, b in steps], rel=1e-5)
    assert [each.greedy for each in found] == [False, True, True, False]
    assert found[2] == Likelihood([], True)
    assert found[0].log == -math.fsum(found[0].losses)
