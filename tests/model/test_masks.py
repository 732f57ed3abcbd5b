"""Short rows, padding and layers without entries give no NaN in forward and backward, in fp32 and bf16.

Every trainable parameter gets a gradient at every length, so that the graph is the same on every rank.
"""

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM

ROWS = {
    "one token": [[1]],
    "two tokens": [[1, 1]],
    "three tokens, without CSA entries": [[1, 1, 1]],
    "five tokens, without HCA entries": [[1] * 5],
    "127 tokens, one short of an HCA entry": [[1] * 127],
    "129 tokens": [[1] * 129],
    "documents of one token": [[1, 2, 3, 4, 5, 6]],
    "short documents in a row longer than an HCA window": [[1 + t // 3 for t in range(130)]],
    "padding around": [[0, 0, 1, 0], [0, 0, 0, 2]],
    "a row of padding only": [[1] * 140, [0] * 140],
}


@pytest.fixture(scope="module", params=["plain", "released"])
def models(request, toy_model) -> dict[torch.dtype, DeepseekV4ForCausalLM]:
    return {dtype: toy_model(dtype, numerics=request.param) for dtype in (torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("documents", ROWS.values(), ids=ROWS)
@pytest.mark.slow
def test_logits_losses_and_all_gradients_are_finite(models, documents, dtype):
    model = models[dtype]
    model.zero_grad()
    documents = torch.tensor(documents)
    tokens = torch.randint(model.config.vocab_size, documents.shape)
    out = model(tokens, labels=tokens, documents=documents, mtp=True)
    for x in (out.logits, out.mtp_logits, out.loss, out.mtp_loss):
        assert x.isfinite().all()
    (out.loss + out.mtp_loss + 1e-3 * out.logits.square().mean()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} is not in the graph"
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_extreme_sinks_give_finite_gradients(toy_model, dtype):
    model = toy_model(dtype)
    with torch.no_grad():
        for block in model.layers:
            block.attn.attn_sink.copy_(torch.tensor([-1e30, -300.0, 300.0, 1e30]))
    tokens = torch.randint(64, (1, 140))
    out = model(tokens, labels=tokens)
    out.loss.backward()
    assert out.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
