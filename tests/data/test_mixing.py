from collections import Counter

import numpy as np
import pytest

from seektune.data import order
from seektune.data.example import Example
from seektune.data.examples import ExampleList
from seektune.data.mixing import BLOCK, Mixture, block_shares
from seektune.data.order import EpochOrder, shuffled


def made(count: int, first: int) -> ExampleList:
    return ExampleList([Example([first + i] * (1 + i % 5), [True] * (1 + i % 5), str(i)) for i in range(count)])


def test_one_dataset_is_numpys_permutation_by_seed_and_epoch():
    """Runs from before mixtures see the same order."""
    mixture = Mixture([made(10, 0)], seed=3)
    expected = np.concatenate([np.random.default_rng((3, epoch)).permutation(10) for epoch in range(3)])
    assert np.array_equal(mixture.draw(0, 30), expected)
    assert np.array_equal(mixture.draw(7, 23), expected[7:23])


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.2, 0.5]])
def test_datasets_are_drawn_by_weight_each_in_epochs_of_its_own(weights):
    mixture = Mixture([made(7, 100), made(5000, 1000)], seed=1, weights=weights)
    drawn = mixture.draw(0, 2 * BLOCK)
    small = drawn[drawn < 7]
    assert len(small) == pytest.approx(2 * BLOCK * weights[0] / sum(weights), abs=2)
    counts = Counter(small.tolist())
    assert len(counts) == 7
    assert max(counts.values()) - min(counts.values()) <= 1
    large = drawn[drawn >= 7]
    assert len(set(large[:5000].tolist())) == min(5000, len(large)), "no example twice before its dataset ends"


def test_what_is_drawn_depends_on_seed_and_position_alone():
    mixtures = [Mixture([made(7, 0), made(50, 0), made(9, 0)], seed, [1, 2, 3]) for seed in (1, 1, 2)]
    whole = mixtures[0].draw(0, 3 * BLOCK)
    for start, stop in ((5000, 5100), (0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK, 2 * BLOCK), (9000, 9001)):
        assert np.array_equal(mixtures[1].draw(start, stop), whole[start:stop])
    assert not np.array_equal(mixtures[2].draw(0, BLOCK), whole[:BLOCK])


def test_columns_and_examples_are_those_of_the_datasets():
    mixture = Mixture([made(7, 100), made(50, 1000)], seed=0)
    drawn = mixture.draw(0, 200)
    for number, length, counted in zip(drawn, mixture.lengths(drawn), mixture.counted(drawn), strict=True):
        dataset, local = (0, number) if number < 7 else (1, number - 7)
        example = mixture.example(number)
        assert example is mixture.datasets[dataset].example(local)
        assert (length, counted) == (len(example.tokens), len(example.tokens) - 1)


def test_the_smallest_weight_still_has_a_share_and_shares_fill_the_block():
    assert block_shares([1e-9, 1.0]) == [1, BLOCK - 1]
    assert block_shares([1e308, 1e308]) == [BLOCK // 2, BLOCK // 2]
    for weights in ([1, 1, 1], [5, 3], [1] * 100, [0.3, 0.3, 0.4]):
        assert sum(block_shares(weights)) == BLOCK


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 1025])
def test_a_computed_order_is_a_permutation(count):
    found = shuffled(np.arange(count), count, (1, 2))
    assert sorted(found.tolist()) == list(range(count))
    assert count < 16 or not np.array_equal(found, shuffled(np.arange(count), count, (1, 3)))


def test_a_computed_order_is_mixed_well():
    found = shuffled(np.arange(4096), 4096, (0, 0))
    steps = np.abs(np.diff(found))
    assert abs(np.corrcoef(found, np.arange(4096))[0, 1]) < 0.05
    assert steps.mean() == pytest.approx(4096 / 3, rel=0.05)


def test_large_datasets_have_a_computed_order(monkeypatch):
    monkeypatch.setattr(order, "MOST_LISTED", 100)
    large = EpochOrder(101, seed=4)
    found = large.at(0, 202)
    assert sorted(found[:101].tolist()) == sorted(found[101:].tolist()) == list(range(101))
    assert not np.array_equal(found[:101], found[101:])
    assert np.array_equal(large.at(77, 150), found[77:150])
    assert not np.array_equal(EpochOrder(101, 4, dataset=1).at(0, 101), found[:101])
