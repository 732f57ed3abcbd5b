"""A cache takes the memory of the architecture, a step does not copy the history, and mistakes are named."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.largest_tensor import LargestTensor


class LargestMade(LargestTensor):
    """Views are nothing made."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        known = {x.untyped_storage().data_ptr() for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)}
        result = function(*arguments, **(options or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        sizes = [x.numel() for x in made if x.untyped_storage().data_ptr() not in known]
        self.size = max([self.size, *sizes])
        return result


def bytes_per_token(model, max_length: int = 4096) -> float:
    one, two = (model.new_cache(1, length).nbytes() for length in (max_length, 2 * max_length))
    return (two - one) / max_length


def test_memory_per_token_is_that_of_the_entries(toy_model):
    # head width 16, index width 16, 4 bytes
    only = {"num_hidden_layers": 1, "num_hash_layers": 0, "num_nextn_predict_layers": 0}
    for ratio, expected in ((0, 0), (128, 16 * 4 / 128), (4, (16 + 16) * 4 / 4)):
        assert bytes_per_token(toy_model(torch.float32, compress_ratios=[ratio], **only)) == expected
    assert bytes_per_token(toy_model(torch.bfloat16, compress_ratios=[128], **only)) == 16 * 2 / 128


def test_an_indexer_that_never_chooses_keeps_nothing(toy_model):
    model = toy_model(torch.float32)
    few, more = (model.new_cache(1, 4 * entries).layers[1] for entries in (8, 9))
    assert few.index is None
    assert more.index is not None


def test_entries_follow_the_dtype_and_unfinished_windows_are_fp32(toy_model):
    layer = toy_model(torch.bfloat16).new_cache(2, 100).layers[1]
    assert layer.keys.values.dtype == layer.compressed.entries.dtype == torch.bfloat16
    assert layer.compressed.tail.values.dtype == torch.float32


@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_a_step_makes_nothing_as_large_as_the_history(toy_model, ratio):
    model = toy_model(
        torch.float32, num_hidden_layers=1, num_hash_layers=0, compress_ratios=[ratio, 0], index_n_heads=1
    )
    sizes = []
    for length in (2048, 4096):
        cache = model.new_cache(1, length + 1)
        model(torch.randint(64, (1, length)), cache=cache, with_logits=False)
        with LargestMade() as largest:
            model(torch.randint(64, (1, 1)), cache=cache)
        sizes.append(largest.size)
    if ratio:
        # scores are a few numbers for each entry; a copy of the entries would be 16
        assert sizes[1] < 4096 / ratio * 16
    else:
        assert sizes[0] == sizes[1]


def test_what_a_cache_cannot_hold_is_refused(toy_model):
    model = toy_model(torch.float32)
    for arguments, complaint in (
        ({"batch_size": 0, "max_length": 8}, "batch_size must be 1 or more, not 0"),
        ({"batch_size": 1, "max_length": 0}, "max_length must be 1 or more, not 0"),
        ({"batch_size": 1, "max_length": 8, "rollback": -1}, "rollback must be 0 or more, not -1"),
    ):
        with pytest.raises(ValueError, match=complaint):
            model.new_cache(**arguments)
    cache = model.new_cache(2, 8)
    ids = torch.ones(2, 6, dtype=torch.int64)
    model(ids, cache=cache)
    with pytest.raises(ValueError, match="row 0 of the cache holds 6 tokens; 6 more are too many for its max_length 8"):
        model(ids, cache=cache)
    with pytest.raises(ValueError, match="the cache has 2 rows, input_ids 1"):
        model(ids[:1, :1], cache=cache)
    with pytest.raises(ValueError, match="leave labels, mtp and ledger out"):
        model(ids[:, :1], labels=ids[:, :1], cache=cache)
    with pytest.raises(ValueError, match="leave labels, mtp and ledger out"):
        model(ids[:, :1], mtp=True, cache=cache)
    for documents in ([[0, 1], [1, 1]], [[1, 2], [1, 1]], [[1, 1], [2, 2]]):
        with pytest.raises(ValueError, match="a row holds one sequence"):
            model(ids[:, :2], documents=torch.tensor(documents), cache=cache)
    assert cache.lengths == [6, 6]


def test_going_back_too_far_is_refused(toy_model):
    model = toy_model(torch.float32)
    cache = model.new_cache(1, 40, rollback=3)
    model(torch.ones(1, 2, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="row 0 of the cache can go back by 0 to 2 tokens now, not 3; it holds 2"):
        cache.rollback(3)
    model(torch.ones(1, 9, dtype=torch.int64), cache=cache)
    cache.rollback(2)
    with pytest.raises(ValueError, match="0 to 1 tokens now, not 2; it holds 9 and is made for rollback=3"):
        cache.rollback(2)
    with pytest.raises(ValueError, match="not -1"):
        cache.rollback(-1)
    assert cache.lengths == [9]


def test_a_cache_outlives_inference_mode(toy_model):
    model = toy_model(torch.float32)
    ids = torch.randint(64, (1, 12))
    with torch.inference_mode():
        cache = model.new_cache(1, 40)
        model(ids[:, :6], cache=cache)
    found = model(ids[:, 6:], cache=cache.select([0])).logits
    assert not found.requires_grad
    torch.testing.assert_close(found, model(ids).logits.detach()[:, 6:], rtol=0, atol=1e-4)
