import pytest

from seektune.data.example import Example
from seektune.data.packing import FirstFit, collate, fitting, pack, singly
from seektune.sequence import SequenceLayout

PAD = 2


def example(length: int, name: str = "x", first: int = 10) -> Example:
    tokens = list(range(first, first + length))
    return Example(tokens, [False] + [True] * (len(tokens) - 1), name)


def test_a_row_of_one_example_is_filled_up_to_the_longest():
    batch = collate(singly([example(3), example(5)]), PAD)
    assert batch.tokens.tolist() == [[10, 11, 12, PAD, PAD], [10, 11, 12, 13, 14]]
    assert batch.labels.tolist() == [[-100, 11, 12, -100, -100], [-100, 11, 12, 13, 14]]
    assert batch.documents.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.taught() == 2 + 4


def test_padding_is_masked_by_length_not_by_id():
    taught_pad = Example([0, PAD, PAD], [False, True, True], "its text holds the pad id")
    batch = collate([[taught_pad], [example(4)]], PAD)
    assert batch.documents[0].tolist() == [1, 1, 1, 0]
    assert batch.labels[0].tolist() == [-100, PAD, PAD, -100]


def test_documents_of_a_row_are_numbered_from_one():
    batch = collate([[example(2), example(3, first=20)]], PAD, length=7)
    assert batch.documents.tolist() == [[1, 1, 2, 2, 2, 0, 0]]
    assert batch.tokens.tolist() == [[10, 11, 20, 21, 22, PAD, PAD]]
    assert batch.labels.tolist() == [[-100, 11, -100, 21, 22, -100, -100]]
    assert SequenceLayout.from_documents(batch.documents).positions[0, :5].tolist() == [0, 1, 0, 1, 2]


def test_packing_is_first_fit_in_the_given_order():
    examples = [example(n, str(i)) for i, n in enumerate([6, 5, 4, 3, 2, 2])]
    assert [[e.name for e in row] for row in pack(examples, 10)] == [["0", "2"], ["1", "3", "4"], ["5"]]


def test_a_full_packer_refuses_and_stays_as_it_is():
    packer = FirstFit(2, 10)
    assert [packer.put(example(n)) for n in (7, 7, 4, 3, 3, 1)] == [True, True, False, True, True, False]
    assert [[len(e.tokens) for e in row] for row in packer.rows] == [[7, 3], [7, 3]]


def test_the_longest_of_overlong_examples_is_named_with_what_to_set():
    examples = [example(9, "row 0"), example(12, "row 1"), example(11, "row 2")]
    with pytest.raises(ValueError, match=r"row 1: 12 tokens .* 10 .2 of 3 .*batch.length=12 or --batch.overlong=drop"):
        fitting(examples, 10, "error")
    assert fitting(examples, 12, "error") == (examples, 0)
    assert fitting(examples, 10, "drop") == (examples[:1], 2)


def test_dropping_everything_is_an_error():
    with pytest.raises(ValueError, match="3 of 3 examples do not fit"):
        fitting([example(9)] * 3, 8, "drop")
    for overlong in ("error", "drop"):  # nothing would be left, so dropping is no remedy
        with pytest.raises(ValueError, match=r"\(3 of 3 examples do not fit\); set --batch\.length=9$"):
            fitting([example(9)] * 3, 8, overlong)
