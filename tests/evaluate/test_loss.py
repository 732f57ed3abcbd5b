import pytest
import torch

from seektune.data.example import Example
from seektune.data.held_out_loss import HeldOutLoss
from seektune.data.packing import collate
from seektune.evaluate.loss import held_out_loss, validation_loss


def example(tokens: list[int], read: int) -> Example:
    return Example(tokens, [i >= read for i in range(len(tokens))], "x")


def test_every_taught_token_counts_the_same(bigram):
    texts = [example([0, 5, 6, 7], 2), example([0, 9, 8, 7, 6, 5, 4], 1), example([0, 3], 1)]
    batches = [collate([[texts[0], texts[1]]], 2), collate([[texts[2]]], 2)]
    log_p = torch.log_softmax(bigram.table.detach(), dim=-1)
    taught = [
        float(log_p[a, b])
        for text, read in zip(texts, (2, 1, 1), strict=True)
        for a, b in zip(text.tokens[read - 1 :], text.tokens[read:], strict=False)
    ]
    assert len(taught) == 2 + 6 + 1
    assert validation_loss(bigram, batches) == pytest.approx(-sum(taught) / len(taught), rel=1e-5)
    assert not bigram.graded


def test_a_batch_in_which_nothing_is_taught_does_not_disturb(bigram):
    taught, read = collate([[example([0, 5, 6], 1)]], 2), collate([[example([0, 5, 6], 3)]], 2)
    assert validation_loss(bigram, [read, taught]) == validation_loss(bigram, [taught])


def test_the_loss_of_each_dataset_and_of_all_together(bigram):
    one = [collate([[example([0, 5, 6, 7], 2)]], 2)]
    two = [collate([[example([0, 9, 8, 7, 6, 5, 4], 1)]], 2), collate([[example([0, 3], 1)]], 2)]
    found = held_out_loss(bigram, [*one, *two], {"one": one, "two": two})
    assert found.loss == pytest.approx(validation_loss(bigram, [*one, *two]), rel=1e-12)
    assert found.datasets == {"one": validation_loss(bigram, one), "two": validation_loss(bigram, two)}
    assert held_out_loss(bigram, one, {}) == HeldOutLoss(validation_loss(bigram, one))
    told: list[None] = []
    held_out_loss(bigram, one, {}, lambda: told.append(None))
    assert len(told) == len(one)
