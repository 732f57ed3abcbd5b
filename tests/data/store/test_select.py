"""Choices by digest: held-out rows do not depend on other rows, duplicates are counted, limits are spread."""

import numpy as np
import pytest

from seektune.data.store.select import choose, held_out, repeated, spread

NOTHING = np.empty(0, np.uint64)


def digests(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def everything(count: int) -> np.ndarray:
    return np.ones(count, bool)


def test_held_out_rows_stay_when_rows_are_added_and_the_share_is_met():
    numbers = np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64, endpoint=False)
    chosen = held_out(numbers, 0.02)
    assert chosen.mean() == pytest.approx(0.02, rel=0.1)
    order = np.random.default_rng(1).permutation(len(numbers))
    assert (held_out(numbers[order][:500], 0.02) == chosen[order][:500]).all()
    # a larger share keeps what a smaller one held out
    assert (held_out(numbers, 0.05) >= chosen).all()


def test_repeated_rows_are_counted_and_dropped_by_choice():
    found = digests(5, 6, 5, 7, 5, 6)
    rows = np.arange(6)
    kept = choose(found, rows, everything(6), NOTHING, drop_duplicates=False, limit=None)
    assert (kept.ids.tolist(), kept.duplicates, kept.rows) == ([0, 1, 2, 3, 4, 5], 3, 6)
    dropped = choose(found, rows, everything(6), NOTHING, drop_duplicates=True, limit=None)
    assert (dropped.ids.tolist(), dropped.duplicates, dropped.rows) == ([0, 1, 3], 3, 3)


def test_examples_of_one_row_are_no_duplicates_of_each_other():
    found = digests(5, 5, 6, 5, 5)
    rows = np.array([0, 0, 1, 2, 2])
    assert choose(found, rows, everything(5), NOTHING, drop_duplicates=True, limit=None).ids.tolist() == [0, 1, 2]


def test_rows_that_are_also_held_out_are_counted_and_dropped_by_choice():
    found = digests(5, 6, 7, 6)
    for drop, ids in ((False, [0, 1, 2, 3]), (True, [0, 2])):
        chosen = choose(found, np.arange(4), everything(4), digests(6, 9), drop, None)
        assert (chosen.ids.tolist(), chosen.duplicates, chosen.also_held_out) == (ids, 1, 1)


def test_only_the_rows_among_which_is_chosen_count():
    found = digests(5, 5, 6, 5)
    among = np.array([False, True, True, True])
    chosen = choose(found, np.arange(4), among, NOTHING, drop_duplicates=True, limit=None)
    assert (chosen.ids.tolist(), chosen.duplicates) == ([1, 2], 1)


@pytest.mark.parametrize(("limit", "ids"), [(4, [0, 2, 5, 7]), (1, [0]), (None, [*range(10)]), (99, [*range(10)])])
def test_a_limit_is_spread_over_the_rows(limit: int | None, ids: list[int]):
    assert spread(np.arange(10), limit).tolist() == ids
    rows = np.repeat(np.arange(10), 2)
    both = choose(rows.astype(np.uint64), rows, everything(20), NOTHING, drop_duplicates=False, limit=limit)
    assert both.ids.tolist() == [2 * i + more for i in ids for more in (0, 1)]


def test_repeated_rows_are_those_that_a_set_has_seen():
    found = np.random.default_rng(0).integers(0, 700, 1000).astype(np.uint64)
    seen: set[int] = set()
    expected = []
    for value in found.tolist():
        expected.append(value in seen)
        seen.add(value)
    assert repeated(found).tolist() == expected


def test_a_limit_is_of_what_is_left():
    found = digests(1, 1, 2, 3, 3, 4)
    chosen = choose(found, np.arange(6), everything(6), NOTHING, drop_duplicates=True, limit=2)
    assert (chosen.ids.tolist(), chosen.rows) == ([0, 3], 2)


def test_nothing_is_chosen_of_nothing():
    empty = choose(NOTHING, np.empty(0, np.int64), everything(0), NOTHING, True, 3)
    assert (empty.ids.tolist(), empty.duplicates, empty.also_held_out, empty.rows) == ([], 0, 0, 0)
