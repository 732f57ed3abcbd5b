"""Inputs that `forward` accepts and rejects, and dtypes and shapes of its outputs."""

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM


@pytest.fixture(scope="module")
def model(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(torch.float32)


TOKENS = torch.arange(12).view(2, 6)

BAD = {
    "one row without its dimension": ({"input_ids": TOKENS[0]}, "input_ids"),
    "embeddings instead of ids": ({"input_ids": torch.randn(2, 6)}, "input_ids"),
    "no tokens": ({"input_ids": TOKENS[:, :0]}, "input_ids"),
    "no rows": ({"input_ids": TOKENS[:0]}, "input_ids"),
    "an id beyond the vocabulary": ({"input_ids": TOKENS + 60}, "vocabulary"),
    "a negative id": ({"input_ids": TOKENS - 1}, "vocabulary"),
    "labels of another length": ({"input_ids": TOKENS, "labels": TOKENS[:, :5]}, "labels"),
    "labels beyond the vocabulary": ({"input_ids": TOKENS, "labels": TOKENS + 60}, "labels"),
    "negative labels other than -100": ({"input_ids": TOKENS, "labels": TOKENS - 7}, "labels"),
    "documents of another shape": ({"input_ids": TOKENS, "documents": TOKENS[:1]}, "documents"),
    "negative documents": ({"input_ids": TOKENS, "documents": TOKENS - 1}, "document"),
    "documents as an attention mask of floats": ({"input_ids": TOKENS, "documents": torch.ones(2, 6)}, "document"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_gives_one_line_that_names_the_argument(model, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        model(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_logits_and_losses_are_at_least_fp32(toy_model, dtype):
    model = toy_model(dtype)
    out = model(TOKENS, labels=TOKENS, mtp=True)
    expected = torch.promote_types(dtype, torch.float32)
    assert {x.dtype for x in (out.logits, out.loss, out.mtp_logits, out.mtp_loss)} == {expected}
    assert out.logits.shape == (2, 6, 64)
    assert out.mtp_logits.shape == (2, 5, 64)


@torch.no_grad()
def test_logits_of_a_bf16_model_are_not_rounded_to_bf16(toy_model):
    logits = toy_model(torch.bfloat16)(TOKENS).logits
    assert not torch.equal(logits, logits.bfloat16().float())


@torch.no_grad()
def test_forward_is_deterministic_and_changes_no_state(model):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    first, second = model(TOKENS, mtp=True), model(TOKENS, mtp=True)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.mtp_logits, second.mtp_logits)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64, torch.uint8])
@pytest.mark.parametrize("which", ["input_ids", "labels", "documents"])
def test_non_integer_ids_are_named(model, which, dtype):
    arguments = {name: torch.ones(2, 4, dtype=torch.int64) for name in ("input_ids", "labels", "documents")}
    arguments[which] = arguments[which].to(dtype)
    with pytest.raises(ValueError, match=rf"{which} must be integers \(int64\), not {str(dtype)[6:]}"):
        model(**arguments)


def test_int32_ids_are_accepted(model):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    wide, short = model(ids, labels=ids), model(ids.int(), labels=ids.int())
    assert torch.equal(wide.loss, short.loss)
    assert torch.equal(wide.logits, short.logits)
