"""With batch-invariant kernels decoding gives the bits of the training forward, in a batch of any size."""

from pathlib import Path

import pytest
import torch

from seektune.kernels import batch_invariant_kernels
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM

LENGTH = 132


@torch.no_grad()
def assert_equal_bits(model: DeepseekV4ForCausalLM) -> None:
    """Of a whole row of two, and of the other alone in parts."""
    tokens = torch.randint(model.config.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    with batch_invariant_kernels():
        whole = model(tokens).logits
        cache = model.new_cache(1, LENGTH)
        parts = tokens[:1].split([126, 1, 1, 1, 3], dim=1)
        decoded = torch.cat([model(part, cache=cache).logits for part in parts], dim=1)
    assert torch.equal(decoded, whole[:1])


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_decoding_gives_the_bits_of_the_whole_forward(toy_model, dtype: torch.dtype) -> None:
    assert_equal_bits(toy_model(dtype=dtype, numerics="released"))


@pytest.mark.slow
def test_so_do_adapters_on_weights_in_fp4_and_fp8(parity_folder: Path) -> None:
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, numerics="released", quantized=True)
    adapt(model, matching(model, ["attn", "ffn.experts", "ffn.shared_experts"]), AdapterShape(4, 8))
    for name, parameter in model.named_parameters():
        if ".lora." in name:
            torch.nn.init.normal_(parameter, std=0.02)
    assert_equal_bits(model)
