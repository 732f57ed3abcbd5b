"""Histogram, row lengths and packing of known lengths."""

import numpy as np
import pytest

from seektune.data.stats.lengths import LengthBin, fill_of, histogram, row_lengths


def test_bins_hold_every_example_once() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        lengths = generator.integers(1, generator.integers(2, 5000), size=50).astype(np.int32)
        bins = histogram(lengths)
        assert [each.examples for each in bins] == [
            int(((lengths >= each.start) & (lengths < each.stop)).sum()) for each in bins
        ]
        assert sum(each.examples for each in bins) == 50
        assert [a.stop for a in bins[:-1]] == [b.start for b in bins[1:]]
        assert bins[0].examples > 0 < bins[-1].examples


def test_one_length_has_one_bin() -> None:
    assert histogram(np.array([64, 64], dtype=np.int32)) == [LengthBin(64, 96, 2)]


def test_row_lengths_count_what_is_cut() -> None:
    lengths = np.array([100, 512, 600, 2000], dtype=np.int32)
    found = {each.length: each for each in row_lengths(lengths, own=550)}
    assert list(found) == [512, 550, 1024, 2048]
    assert (found[512].overlong, found[512].cut_tokens) == (2, 88 + 1488)
    assert (found[550].overlong, found[550].cut_tokens) == (2, 50 + 1450)
    assert (found[2048].overlong, found[2048].cut_tokens) == (0, 0)
    assert found[512].fill == pytest.approx(612 / 1024)
    assert found[2048].fill == pytest.approx(3212 / 4096)


def test_a_row_length_that_nothing_fits_has_no_fill() -> None:
    assert row_lengths(np.array([900], dtype=np.int32), own=512)[0].fill == 0.0


def test_packing_fills_rows_wherever_it_can() -> None:
    for lengths, fill in (([5, 5, 3, 2, 2, 3], 1.0), ([6, 6, 6], 0.6), ([], 0.0)):
        assert fill_of(np.array(lengths, dtype=np.int32), 10) == pytest.approx(fill)
