from collections import Counter

import pytest
import torch

from seektune.data.config import BatchConfig
from seektune.data.example import Example
from seektune.data.loader import Loader, in_order
from seektune.sequence import Batch

PAD = 2


def made(count: int, shortest: int = 3, spread: int = 6) -> list[Example]:
    """Examples of different lengths; the first token of each is its number + 100."""
    lengths = [shortest + (i * 7) % spread for i in range(count)]
    return [Example([100 + i, *range(3, 2 + n)], [False] + [True] * (n - 1), str(i)) for i, n in enumerate(lengths)]


def loader(examples: list[Example], seed: int = 5, **batch) -> Loader:
    return Loader(examples, BatchConfig(**{"global_size": 4, "micro_size": 2, "length": 16} | batch), seed, PAD)


def drawn(step: list[Batch]) -> list[int]:
    """Numbers of the examples of a step, in row order."""
    return [int(i) - 100 for batch in step for i in batch.tokens.flatten() if i >= 100]


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        torch.equal(a, b)
        for x, y in pairs
        for a, b in zip((x.tokens, x.labels, x.documents), (y.tokens, y.labels, y.documents), strict=True)
    )


def test_a_step_has_global_size_rows_in_micro_batches():
    step = loader(made(10)).next_step()
    assert [batch.tokens.shape[0] for batch in step] == [2, 2]
    for batch in step:
        assert batch.tokens.shape == batch.labels.shape == batch.documents.shape
        assert (batch.documents != 0).any(dim=0).all(), "no column is padding only"


def test_rows_of_a_step_meet_by_length():
    lengths = [int((row != 0).sum()) for batch in loader(made(10)).next_step() for row in batch.documents]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("pack", [False, True])
def test_within_an_epoch_every_example_comes_once(pack):
    examples = made(11)
    stream = loader(examples, pack=pack)
    seen: list[int] = []
    while len(seen) < 33:
        before = stream.state_dict()
        step = drawn(stream.next_step())
        after = stream.state_dict()
        assert len(step) == (after["epoch"] - before["epoch"]) * 11 + after["offset"] - before["offset"]
        seen += step
    whole = Counter(seen)
    assert set(whole) == set(range(11))
    assert max(whole.values()) - min(whole.values()) <= 1


def test_epochs_differ_and_a_seed_repeats_them():
    def order(seed: int, epochs: int) -> list[list[int]]:
        stream = loader(made(8), seed, global_size=1, micro_size=1)
        return [[drawn(stream.next_step())[0] for _ in range(8)] for _ in range(epochs)]

    first, second = order(5, 2)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(8))
    assert order(5, 2) == [first, second]
    assert order(6, 1)[0] != first


@pytest.mark.parametrize("pack", [False, True])
def test_a_dataset_smaller_than_a_step_goes_on_into_the_next_epoch(pack):
    step = drawn(loader(made(3), global_size=8, pack=pack).next_step())
    counts = Counter(step)
    assert set(counts) == {0, 1, 2}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(step) == 8 or pack


def test_packed_rows_are_full_length_and_hold_several_documents():
    step = loader(made(40), pack=True, global_size=4, micro_size=4).next_step()
    (batch,) = step
    assert batch.tokens.shape == (4, 16)
    assert (batch.documents.max(dim=1).values >= 2).all()
    assert (batch.tokens[batch.documents == 0] == PAD).all()
    assert (batch.labels[batch.documents == 0] == -100).all()
    assert int((batch.documents != 0).sum()) > 0.7 * batch.documents.numel()


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_resuming_is_exact_in_the_middle_of_an_epoch(pack, steps):
    examples = made(11)
    straight, resumed = loader(examples, pack=pack), loader(examples, pack=pack)
    for _ in range(steps):
        straight.next_step()
    resumed.load_state_dict(straight.state_dict())
    for _ in range(6):
        assert same(straight.next_step(), resumed.next_step())


def test_resuming_with_another_dataset_is_refused():
    with pytest.raises(ValueError, match="11 training examples, this dataset gives 12"):
        loader(made(12)).load_state_dict(loader(made(11)).state_dict())


@pytest.mark.parametrize("pack", [False, True])
def test_validation_batches_hold_every_example_once(pack):
    examples = made(7)
    batches = in_order(examples, BatchConfig(global_size=4, micro_size=2, length=16, pack=pack), PAD)
    assert Counter(drawn(batches)) == Counter(range(7))
    if not pack:
        assert drawn(batches) == list(range(7))
        assert [batch.tokens.shape[0] for batch in batches] == [2, 2, 2, 1]
    assert sum(batch.taught() for batch in batches) == sum(len(example.tokens) - 1 for example in examples)
