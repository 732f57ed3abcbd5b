"""Positions, documents and windows of `SequenceLayout`, compared with loops over the row."""

import pytest
import torch

from seektune.sequence import Batch, SequenceLayout

DOCUMENTS = [
    [1] * 9 + [2] * 1 + [3] * 3 + [1] * 4 + [0] * 2 + [7] * 5 + [0] * 4,
    [0] * 5 + [2] * 8 + [4] * 8 + [0] * 3 + [4] * 4,
    [5] * 28,
    [0] * 28,
]


@pytest.fixture
def layout() -> SequenceLayout:
    return SequenceLayout.from_documents(torch.tensor(DOCUMENTS))


def test_positions_restart_at_each_document(layout):
    for row, numbers in enumerate(DOCUMENTS):
        position = 0
        for t, number in enumerate(numbers):
            position = position + 1 if t and numbers[t - 1] == number else 0
            assert layout.positions[row, t] == position


def test_joined_and_followed_stop_at_document_ends(layout):
    joined, followed = layout.joined(), layout.followed()
    for row, numbers in enumerate(DOCUMENTS):
        for t in range(len(numbers) - 1):
            inside = numbers[t] == numbers[t + 1] != 0
            assert joined[row, t] == inside
            assert followed.documents[row, t] == (numbers[t] if inside else 0)
            assert followed.positions[row, t] == layout.positions[row, t]


@pytest.mark.parametrize("ratio", [1, 2, 4, 5, 128])
def test_windows_are_complete_windows_of_each_document(layout, ratio):
    windows = layout.windows(ratio)
    for row, numbers in enumerate(DOCUMENTS):
        complete, firsts, start = [], {}, 0
        for t, number in enumerate(numbers):
            if t and numbers[t - 1] != number:
                start = t
            firsts.setdefault(start, len(complete))
            if number and (t - start + 1) % ratio == 0:
                complete.append((t, t - start + 1 - ratio))
            if number:
                assert windows.first_BT[row, t] == firsts[start]
                assert windows.count_BT[row, t] == (t - start + 1) // ratio
            else:
                assert windows.count_BT[row, t] == 0
        count = len(complete)
        # unused slots after them must hold valid indices
        assert windows.last_BE.shape[1] == windows.position_BE.shape[1] == len(numbers) // ratio
        assert ((windows.last_BE >= ratio - 1) & (windows.last_BE < len(numbers))).all()
        assert windows.last_BE[row, :count].tolist() == [last for last, _ in complete]
        assert windows.position_BE[row, :count].tolist() == [position for _, position in complete]


def test_one_document_per_row_equals_single():
    single = SequenceLayout.single(2, 7)
    explicit = SequenceLayout.from_documents(torch.full((2, 7), 3))
    assert torch.equal(single.positions, explicit.positions)
    assert torch.equal(single.real, explicit.real)
    assert torch.equal(single.joined(), explicit.joined())


@pytest.mark.parametrize(
    "documents",
    [torch.ones(5, dtype=torch.long), torch.ones(2, 5), torch.tensor([[1, -1]]), torch.ones(1, 2, 3).long()],
)
def test_bad_document_numbers_are_rejected(documents):
    with pytest.raises(ValueError, match="document"):
        SequenceLayout.from_documents(documents)


def test_taught_counts_predicted_tokens():
    documents = torch.tensor([[1, 1, 1, 2, 2, 0, 0]])
    labels = torch.tensor([[5, 5, -100, 5, 5, 5, 5]])
    # tokens 1 and 4 are predicted; 0 and 3 begin a document, 2 is not taught, the rest is padding
    assert Batch(torch.zeros_like(labels), labels, documents).taught() == 2
