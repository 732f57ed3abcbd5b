import math
import random

import numpy as np
import pytest

from seektune.evaluate import statistics
from seektune.evaluate.statistics import RESAMPLES, SEED, Change, Estimate, sign_test


def outcomes(right: int, n: int) -> list[bool]:
    return [i < right for i in range(n)]


@pytest.mark.parametrize("right", [30, 100, 170])
def test_the_interval_of_a_share_is_the_binomial_one(right):
    share = Estimate.of_share(outcomes(right, 200))
    reach = 1.96 * math.sqrt(right * (200 - right) / 200**3)
    assert share.value == right / 200
    assert (share.low, share.high) == pytest.approx((share.value - reach, share.value + reach), abs=0.008)


def test_the_interval_of_a_share_is_that_of_its_mean():
    drawn = outcomes(11, 60)
    share, mean = Estimate.of_share(drawn), Estimate.of_ratio(drawn, [1] * 60)
    assert (share.low, share.high) == pytest.approx((mean.low, mean.high), abs=1 / 60 + 1e-9)


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.30850), (10, 0.69150, 1.0)])
def test_answers_that_are_all_the_same_are_not_certain(right, low, high):
    share = Estimate.of_share(outcomes(right, 10))
    assert share == Estimate(right / 10, pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


@pytest.mark.slow
def test_nineteen_of_twenty_intervals_hold_the_truth():
    dice = random.Random(1)
    held = 0
    for _ in range(300):
        share = Estimate.of_share([dice.random() < 0.3 for _ in range(150)])
        held += share.low <= 0.3 <= share.high
    assert 0.91 <= held / 300 <= 0.985


def test_a_ratio_is_of_sums():
    found = Estimate.of_ratio([1, 20, 3], [1, 10, 3])
    assert found.value == 24 / 14
    assert 1 <= found.low < found.value < found.high <= 2
    assert Estimate.of_ratio([4], [2]) == Estimate(2, 2, 2)


@pytest.mark.parametrize(
    ("won", "lost", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (0, 6, 0.03125), (7, 2, 0.1796875), (3, 3, 1.0)]
)
def test_the_sign_test_is_exact(won, lost, p):
    assert sign_test(won, lost) == p
    assert sign_test(lost, won) == p


def test_the_sign_test_is_exact_for_many():
    # a table that sums binomial coefficients the plain way
    expected = 2 * sum(math.comb(900, k) for k in range(421)) / 2**900
    assert sign_test(420, 480) == pytest.approx(expected, rel=1e-12)
    assert sign_test(5000, 5000) == 1.0


def test_a_change_is_paired():
    first, second = outcomes(50, 100), outcomes(60, 100)
    change = Change.of_shares(first, second)
    assert change.difference == pytest.approx(0.1)
    assert 0 < change.low < 0.1 < change.high < 0.2
    assert change.p_value == 2 / 2**10
    # the same shares, but each model right where the other is wrong
    scattered = Change.of_shares(first, [not each for each in outcomes(40, 100)])
    assert scattered.difference == pytest.approx(0.1)
    assert scattered.p_value > 0.2
    assert scattered.low < 0 < scattered.high


def test_a_change_of_losses_is_weighted_by_tokens():
    first, counts = [4.0, 9.0, 2.0, 6.0] * 5, [2, 3, 1, 2] * 5
    worse = Change.of_ratios(first, [loss + 0.5 * count for loss, count in zip(first, counts, strict=True)], counts)
    assert worse.difference == pytest.approx(0.5)
    assert (worse.low, worse.high) == pytest.approx((0.5, 0.5))
    assert worse.p_value < 3 / RESAMPLES
    same = Change.of_ratios(first, first, counts)
    assert (same.difference, same.p_value) == (0, 1)


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (2, 0.5), (4, 0.125), (6, 0.03125)])
def test_few_differences_cannot_be_significant(n, p):
    gains = [0.3 + 0.1 * i for i in range(n)]
    assert Change.of_ratios([0.0] * n, gains, [1] * n).p_value == pytest.approx(p, rel=0.15)


@pytest.mark.parametrize("draws", [1, 1000, 10**9])
def test_the_size_of_the_parts_that_are_drawn_changes_no_interval(monkeypatch: pytest.MonkeyPatch, draws: int):
    monkeypatch.setattr(statistics, "DRAWS", draws)
    tops, bottoms = [4.0, 9.5, 2.0, 6.0, 1.0], [2, 3, 1, 2, 2]
    generator = np.random.default_rng(SEED)
    one_by_one = [generator.integers(5, size=5) for _ in range(RESAMPLES)]
    ratios = [np.array(tops)[draw].sum() / np.array(bottoms)[draw].sum() for draw in one_by_one]
    found = Estimate.of_ratio(tops, bottoms)
    assert (found.low, found.high) == tuple(np.quantile(ratios, (0.025, 0.975)))
    assert Change.of_ratios([0.0] * 4, [1.0, 1.1, 1.2, 1.3], [1] * 4).p_value == pytest.approx(0.125, rel=0.15)
