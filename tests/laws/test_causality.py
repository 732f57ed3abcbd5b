"""Causality: a token changes no earlier logits, and does change those that may depend on it."""

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM

LENGTH = 270
TOLERANCE = 1e-10


@pytest.fixture(scope="module", params=["plain", "released"])
def model(request, toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(numerics=request.param)


@pytest.fixture(scope="module")
def sequence(model):
    tokens = torch.randint(model.config.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return tokens, model(tokens, mtp=True)


@pytest.mark.parametrize("t", [0, 3, 4, 15, 16, 126, 127, 128, 255, 256, LENGTH - 1])
@torch.no_grad()
def test_a_token_does_not_change_earlier_logits(model, sequence, t):
    tokens, before = sequence
    changed = tokens.clone()
    changed[0, t] = (changed[0, t] + 1) % model.config.vocab_size
    after = model(changed, mtp=True)
    main = (after.logits - before.logits).abs().amax(dim=-1)[0]
    assert (main[:t] < TOLERANCE).all()
    assert main[t] > 1e-3
    mtp = (after.mtp_logits - before.mtp_logits).abs().amax(dim=-1)[0]
    # position t of the MTP logits reads token t + 1
    assert (mtp[: max(t - 1, 0)] < TOLERANCE).all()
    assert (mtp[max(t - 1, 0)] > 1e-3).all()


@torch.no_grad()
def test_prefix_has_the_logits_of_the_whole_sequence(model, sequence):
    tokens, whole = sequence
    for length in (1, 2, 4, 17, 127, 128, 129, 256):
        part = model(tokens[:, :length], mtp=True)
        assert (part.logits - whole.logits[:, :length]).abs().max() < TOLERANCE, length
        if length > 1:
            assert (part.mtp_logits - whole.mtp_logits[:, : length - 1]).abs().max() < TOLERANCE, length


@torch.no_grad()
def test_entry_is_visible_from_its_last_token_on(toy_model):
    """One HCA layer with a window of one token: token 0 affects others only through the entry of tokens 0 to 127."""
    model = toy_model(
        num_hidden_layers=1, num_hash_layers=0, num_nextn_predict_layers=0, compress_ratios=[128], sliding_window=1
    )
    tokens = torch.randint(model.config.vocab_size, (1, 200))
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % model.config.vocab_size
    moved = (model(changed).logits - model(tokens).logits).abs().amax(dim=-1)[0]
    assert (moved[1:127] < TOLERANCE).all()
    assert (moved[127:] > 1e-9).all()


@torch.no_grad()
def test_window_includes_the_query(toy_model):
    model = toy_model(
        num_hidden_layers=1, num_hash_layers=0, num_nextn_predict_layers=0, compress_ratios=[0], sliding_window=8
    )
    tokens = torch.randint(model.config.vocab_size, (1, 40))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % model.config.vocab_size
    moved = (model(changed).logits - model(tokens).logits).abs().amax(dim=-1)[0]
    assert (moved > 1e-9).nonzero().flatten().tolist() == list(range(10, 18))
