"""What a slice of a row knows of the whole."""

import torch

from seektune.parallel.context import Slice, SlicedLayout
from seektune.sequence import SequenceLayout


def test_a_query_of_a_slice_may_see_the_entries_of_the_whole_row():
    whole = SequenceLayout.single(1, 64)
    for rank in range(4):
        # no process is asked
        part = SlicedLayout.cut(whole, Slice(None, rank, 4))  # type: ignore[arg-type]
        assert part.windows(4).most == whole.windows(4).most == 16
        assert part.windows(4).last_BE.shape == torch.Size([1, 4])
