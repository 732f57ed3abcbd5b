"""Advantages of groups, and batches of rollouts."""

import pytest
import torch

from seektune.data.rollouts import Rollout, advantages, all_equal, collate_rollouts, teacher_columns
from seektune.sequence import ADVANTAGES, IGNORE_INDEX, LOSS_MASK, ROLLOUT_LOGPROBS, TEACHER_NUMBER, WEIGHTS


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


def test_results_of_tools_are_not_taught() -> None:
    rollout = Rollout([5], [7, 8, 9, 2], [-0.1, 0.0, 0.0, -0.3], 1.0, taught=[True, False, False, True])
    batch = collate_rollouts([[rollout]], pad_id=0)
    assert batch.labels[0].tolist() == [IGNORE_INDEX, 7, IGNORE_INDEX, IGNORE_INDEX, 2]
    assert rollout.sampled == 2


def test_the_teacher_and_the_weight_of_an_answer_are_those_of_its_dataset() -> None:
    rows = [[Rollout([5], [7, 8], [-0.1, -0.2], 0.0, dataset=each)] for each in (0, 1, 2)]
    batch = collate_rollouts(rows, 0, teacher_columns(teachers=[1, 0, 1], weights=[0.5, 2.0]))
    assert batch.columns[TEACHER_NUMBER].tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 1]]
    assert batch.columns[WEIGHTS].tolist() == [[0, 2.0, 2.0], [0, 0.5, 0.5], [0, 2.0, 2.0]]
