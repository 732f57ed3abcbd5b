"""Advantages of groups, and batches of rollouts."""

import pytest
import torch

from seektune.data.rollouts import Rollout, advantages, all_equal, collate_rollouts
from seektune.sequence import ADVANTAGES, IGNORE_INDEX, LOSS_MASK, ROLLOUT_LOGPROBS


def test_advantages_are_relative_to_the_group() -> None:
    assert advantages([1.0, 0.0, 0.0, 1.0], scaled=False) == [0.5, -0.5, -0.5, 0.5]
    scaled = advantages([1.0, 0.0, 0.0, 1.0], scaled=True)
    assert scaled == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=1e-4)
    assert advantages([0.3] * 4, scaled=True) == [0.0] * 4
    assert all_equal([0.1 + 0.2, 0.3])
    assert not all_equal([0.0, 1.0])


def test_columns_are_at_the_answers_of_packed_rows() -> None:
    first = Rollout([5, 6], [7, 8, 2], [-0.1, -0.2, -0.3], 1.0, advantage=0.5)
    second = Rollout([9], [4], [-0.4], 0.0, advantage=-0.5, masked=True)
    batch = collate_rollouts([[first, second], [second]], pad_id=0)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 2, 9, 4], [9, 4, 0, 0, 0, 0, 0]]
    assert batch.labels[0].tolist() == [IGNORE_INDEX, IGNORE_INDEX, 7, 8, 2, IGNORE_INDEX, 4]
    assert batch.columns[ADVANTAGES][0].tolist() == [0, 0, 0.5, 0.5, 0.5, 0, -0.5]
    torch.testing.assert_close(batch.columns[ROLLOUT_LOGPROBS][0], torch.tensor([0, 0, -0.1, -0.2, -0.3, 0, -0.4]))
    assert batch.columns[LOSS_MASK].tolist() == [[0, 0, 1, 1, 1, 0, 0], [0] * 7]
