from collections import Counter
from dataclasses import replace

import pytest
import torch

from seektune.data.config import BatchConfig
from seektune.data.example import Example
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader, in_order
from seektune.data.mixing import Mixture
from seektune.data.step_data import ALL, Share, StepData
from seektune.sequence import Batch

PAD = 2


def made(count: int, shortest: int = 3, spread: int = 6, first: int = 100) -> list[Example]:
    """Examples of different lengths; the first token of each is its number + 100."""
    lengths = [shortest + (i * 7) % spread for i in range(count)]
    return [
        Example([first + i, *range(3, 2 + n)], [True] + [i % 2 == 1] * (n - 1), str(i)) for i, n in enumerate(lengths)
    ]


def loader(*datasets: list[Example], seed: int = 5, share: Share = ALL, weights=None, **batch) -> Loader:
    mixture = Mixture([ExampleList(each) for each in datasets], seed, weights)
    return Loader(mixture, BatchConfig(**{"global_size": 4, "micro_size": 2, "length": 16} | batch), PAD, share)


def drawn(batches: list[Batch]) -> list[int]:
    """Numbers of the examples of a step, in row order."""
    return [int(i) - 100 for batch in batches for i in batch.tokens.flatten() if i >= 100]


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x.tensors(), y.tensors(), strict=True))


def test_a_step_has_global_size_rows_in_micro_batches():
    step = loader(made(10)).next_step()
    assert [batch.tokens.shape[0] for batch in step.batches] == [2, 2]
    assert step.micro_batches == 2
    for batch in step.batches:
        assert batch.tokens.shape == batch.labels.shape == batch.documents.shape
        assert (batch.documents != 0).any(dim=0).all(), "no column is padding only"


def test_rows_of_a_step_meet_by_length():
    lengths = [int((row != 0).sum()) for batch in loader(made(10)).next_step().batches for row in batch.documents]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("pack", [False, True])
def test_within_an_epoch_every_example_comes_once(pack):
    stream = loader(made(11), pack=pack)
    seen: list[int] = []
    for _ in range(12):
        seen += drawn(stream.next_step().batches)
    counts = Counter(seen)
    assert set(counts) == set(range(11))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_epochs_differ_and_a_seed_repeats_them():
    def order(seed: int, epochs: int) -> list[list[int]]:
        stream = loader(made(8), seed=seed, global_size=1, micro_size=1)
        return [[drawn(stream.next_step().batches)[0] for _ in range(8)] for _ in range(epochs)]

    first, second = order(5, 2)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(8))
    assert order(5, 2) == [first, second]
    assert order(6, 1)[0] != first


@pytest.mark.parametrize("pack", [False, True])
def test_a_dataset_smaller_than_a_step_goes_on_into_the_next_epoch(pack):
    counts = Counter(drawn(loader(made(3), global_size=8, pack=pack).next_step().batches))
    assert set(counts) == {0, 1, 2}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_packed_rows_are_full_length_and_hold_several_documents():
    (batch,) = loader(made(400), pack=True, global_size=4, micro_size=4).next_step().batches
    assert batch.tokens.shape == (4, 16)
    assert (batch.documents.max(dim=1).values >= 2).all()
    assert (batch.tokens[batch.documents == 0] == PAD).all()
    assert (batch.labels[batch.documents == 0] == -100).all()
    assert int((batch.documents != 0).sum()) > 0.9 * batch.documents.numel()


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("count", [11, 50])
def test_resuming_is_exact_in_the_middle_of_an_epoch(pack, steps, count):
    """Also where a step takes a part of the rows of a chunk (50 examples, 4 rows)."""
    straight, resumed = (loader(made(count), made(7, first=200), pack=pack, weights=[2, 1]) for _ in range(2))
    for _ in range(steps):
        straight.next_step()
    resumed.load_state_dict(straight.state_dict())
    for _ in range(6):
        assert same(straight.next_step().batches, resumed.next_step().batches)


def test_resuming_with_another_dataset_is_refused():
    with pytest.raises(ValueError, match="11 training examples, this dataset gives 12"):
        loader(made(12)).load_state_dict(loader(made(11)).state_dict())


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_shares_are_the_step_dealt_out_and_know_its_numbers(pack, size):
    whole = loader(made(50), pack=pack, global_size=8)
    shares = [loader(made(50), pack=pack, global_size=8, share=Share(rank, size)) for rank in range(size)]
    for _ in range(3):
        step = whole.next_step()
        expected = StepData.of(step.batches)
        assert (step.taught, step.tokens) == (expected.taught, expected.tokens)
        for rank, stream in enumerate(shares):
            own = stream.next_step()
            assert same(own.batches, step.batches[rank::size])
            assert (own.taught, own.tokens, own.micro_batches) == (step.taught, step.tokens, step.micro_batches)
    assert all(stream.state_dict() == whole.state_dict() for stream in shares)


def test_a_process_reads_tokens_of_its_own_rows_only(monkeypatch):
    read: list[int] = []
    plain = ExampleList.example
    monkeypatch.setattr(ExampleList, "example", lambda self, number: read.append(number) or plain(self, number))
    loader(made(64), global_size=8, micro_size=1, share=Share(3, 8)).next_step()
    assert len(read) == 1


@pytest.mark.parametrize("pack", [False, True])
def test_validation_batches_hold_every_example_once(pack):
    examples = made(7)
    batches = in_order(ExampleList(examples), BatchConfig(global_size=4, micro_size=2, length=16, pack=pack), PAD)
    assert Counter(drawn(batches)) == Counter(range(7))
    if not pack:
        assert [batch.tokens.shape[0] for batch in batches] == [2, 2, 2, 1]
        assert [len(examples[i].tokens) for i in drawn(batches)] == sorted(len(each.tokens) for each in examples)
    assert sum(batch.taught() for batch in batches) == ExampleList(examples).counted.sum()
    assert same(batches[1:], list(batches)[1:])


@pytest.mark.parametrize("pack", [False, True])
def test_weights_of_examples_become_a_column_and_a_sum_of_the_whole_step(pack):
    heavy = [replace(each, weight=0.5 + int(each.name)) for each in made(9)]
    whole = loader(heavy, made(3), pack=pack).next_step()
    shares = [loader(heavy, made(3), pack=pack, share=Share(rank, 2)).next_step() for rank in range(2)]
    assert [step.weight for step in shares] == [whole.weight] * 2
    assert whole.weight == pytest.approx(sum(batch.weight() for step in shares for batch in step.batches))
    assert whole.weight != whole.taught
    assert loader(made(9), pack=pack).next_step().weight is None
