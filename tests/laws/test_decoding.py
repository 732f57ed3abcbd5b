"""Decoding from a cache gives the logits of the full forward, at every position and for every attention kind.

In float64, sums in another order agree to 1e-12, and no near-tie of a top-k flips.
"""

import pytest
import torch
from torch import Tensor

from seektune.model.causal_lm import DeepseekV4ForCausalLM

PREFILLS = (1, 3, 4, 5, 127, 128, 129, 130, 257)
LENGTH = 300
TOLERANCE = 1e-10


@pytest.fixture(scope="module", params=["plain", "released"])
def model(request, toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(numerics=request.param)


@pytest.fixture(scope="module")
def sequence(model) -> tuple[Tensor, Tensor]:
    """Three rows of tokens and their logits."""
    tokens = torch.randint(model.config.vocab_size, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return tokens, model(tokens).logits


def in_chunks(model: DeepseekV4ForCausalLM, tokens: Tensor, cache, sizes: list[int]) -> Tensor:
    assert sum(sizes) == tokens.shape[1]
    return torch.cat([model(chunk, cache=cache).logits for chunk in tokens.split(sizes, dim=1)], dim=1)


def max_difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@pytest.mark.parametrize("prefill", PREFILLS)
def test_prefill_then_single_tokens_then_chunks(model, sequence, prefill):
    tokens, logits = sequence
    steps = [prefill, *[1] * 5, 2, 3]
    sizes = [*steps, LENGTH - sum(steps)]
    cache = model.new_cache(1, LENGTH)
    assert max_difference(in_chunks(model, tokens[:1], cache, sizes), logits[:1]) < TOLERANCE
    assert cache.lengths == [LENGTH]


@pytest.mark.slow
def test_decoding_token_by_token(model, sequence):
    tokens, logits = sequence
    assert max_difference(in_chunks(model, tokens, model.new_cache(3, LENGTH), [1] * LENGTH), logits) < TOLERANCE


def test_single_tokens_complete_the_first_entries(model, sequence):
    tokens, logits = sequence
    sizes = [3, 1, 1, 120, *[1] * 5]
    assert (
        max_difference(in_chunks(model, tokens[:, :130], model.new_cache(3, 130), sizes), logits[:, :130]) < TOLERANCE
    )


@pytest.mark.slow
def test_rows_of_different_lengths_share_a_batch(model, sequence):
    tokens, logits = sequence
    cache = model.new_cache(3, LENGTH)
    at = [0, 0, 0]
    # steps longer than the in-place buffers, steps in which some rows have no tokens, and steps of all rows
    for counts in ((1, 131, 57), (3, 0, 1), (1, 1, 1), (1, 1, 1), (0, 4, 90), (5, 2, 0), (1, 1, 1), (120, 1, 3)):
        width = max(counts)
        chunk, documents = torch.randint(60, (3, width)), torch.zeros(3, width, dtype=torch.int64)
        for row, count in enumerate(counts):
            chunk[row, :count] = tokens[row, at[row] : at[row] + count]
            documents[row, :count] = 1
        found = model(chunk, documents=documents, cache=cache).logits
        for row, count in enumerate(counts):
            here = slice(at[row], at[row] + count)
            if count:
                assert max_difference(found[row, :count], logits[row, here]) < TOLERANCE, (counts, row)
            at[row] += count
        assert cache.lengths == at


@pytest.mark.slow
@pytest.mark.parametrize("back", [1, 3, 16])
def test_rollback(model, sequence, back):
    tokens, logits = sequence
    cache = model.new_cache(3, LENGTH)
    wrong = torch.randint(60, (3, back), generator=torch.Generator().manual_seed(4))
    at = 0
    # before an entry of each ratio is complete, after a rolled-back token completed it, and right after a buffer move
    for size in (3, 4, 120, 1, 1, 1, 60):
        model(tokens[:, at : at + size], cache=cache)
        at += size
        model(wrong, cache=cache)
        cache.rollback(back)
        assert cache.lengths == [at] * 3
    assert max_difference(in_chunks(model, tokens[:, at:], cache, [1, 1, LENGTH - at - 2]), logits[:, at:]) < TOLERANCE


def test_rollback_per_row(model, sequence):
    tokens, logits = sequence
    cache = model.new_cache(3, LENGTH)
    model(tokens[:, :125], cache=cache)
    for _ in range(3):
        model(tokens[:, 125:133], cache=cache)
        cache.rollback([8, 5, 0])
        assert cache.lengths == [125, 128, 133]
        cache.rollback([0, 3, 8])
    found = model(tokens[:, 125:140], cache=cache).logits
    assert max_difference(found, logits[:, 125:140]) < TOLERANCE


def test_reset_row_keeps_nothing_of_its_previous_sequence(model, sequence):
    tokens, logits = sequence
    cache = model.new_cache(2, LENGTH)
    model(tokens[:2, :150], cache=cache)
    cache.reset([1])
    assert cache.lengths == [150, 0]
    chunk = torch.stack([tokens[0, 150:155], tokens[2, :5]])
    found = model(chunk, cache=cache).logits
    assert max_difference(found, torch.stack([logits[0, 150:155], logits[2, :5]])) < TOLERANCE
    for layer in cache.layers.values():
        for tail in layer.tails():
            # zeros before the new sequence: no value of the old one is left, not even a masked one
            assert not tail.values[1, : tail.keep - 5].any()
            assert tail.values[1].any()
    cache.reset()
    assert max_difference(model(tokens[1:], cache=cache).logits, logits[1:]) < TOLERANCE


def test_selected_rows_are_independent_copies(model, sequence):
    tokens, logits = sequence
    cache = model.new_cache(1, LENGTH)
    model(tokens[:1, :131], cache=cache)
    both = cache.select([0, 0])
    one = model(tokens[:1, 131:136], cache=cache).logits
    other = torch.randint(60, (1, 5))
    two = model(torch.cat([tokens[:1, 131:136], other]), cache=both).logits
    assert max_difference(one, logits[:1, 131:136]) < TOLERANCE
    assert max_difference(two[:1], one) < TOLERANCE
    whole = model(torch.cat([tokens[:1, :131], other], dim=1)).logits
    assert max_difference(two[1:], whole[:, 131:]) < TOLERANCE


def test_failed_call_does_not_change_the_cache(model, sequence, monkeypatch):
    tokens, logits = sequence
    for chunk in (2, 40):
        cache = model.new_cache(3, LENGTH)
        model(tokens[:, :100], cache=cache)
        with monkeypatch.context() as patch:
            patch.setattr(model.layers[3].ffn, "dispatch", None)
            with pytest.raises(AttributeError):
                model(torch.randint(60, (3, chunk)), cache=cache)
        assert cache.lengths == [100] * 3
        assert max_difference(model(tokens[:, 100:140], cache=cache).logits, logits[:, 100:140]) < TOLERANCE


@pytest.mark.slow
def test_decoding_in_fp32_and_bf16(toy_model, sequence):
    tokens, _ = sequence
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        model = toy_model(dtype)
        with torch.no_grad():
            expected = model(tokens[:, :150]).logits
        found = in_chunks(model, tokens[:, :150], model.new_cache(3, 150), [129, *[1] * 5, 16])
        assert found.dtype == torch.float32
        assert (found - expected).abs().amax(dim=-1).median() < tolerance
