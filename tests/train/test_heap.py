"""Objects that exist when training begins are left out of garbage collections until it ends."""

import gc

from seektune.train.heap import frozen_heap


def test_what_exists_is_left_out_until_the_end() -> None:
    gc.unfreeze()
    with frozen_heap():
        assert gc.get_freeze_count()
        with frozen_heap():
            pass
        assert gc.get_freeze_count(), "the outer one is not over"
    assert not gc.get_freeze_count()
