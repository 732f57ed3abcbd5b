"""Triton kernels equal the reference, values and gradients, in Triton's interpreter, which has no bf16 products."""

import pytest

from tests.forks import Run

OPERATIONS = (
    *("clamped_swiglu", "sinkhorn", "sparse_attention", "index_topk", "hyper_read", "hyper_write", "rotate"),
    *("norm_rope", "token_logprobs", "split_lists", "lowbit_expert_linear", "large_tiles", "few_tokens"),
    *(
        "gathered_lowbit",
        "weighted_swiglu",
        "fake_quantize",
        "rms_norm",
        "pairs",
        "experts",
        "fp8_expert_linear",
        "fp8_tiles",
        "fp8_fallbacks",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_interpreted_kernel_equals_reference(name: str, in_interpreter: Run):
    done = in_interpreter("import sys; from tests.kernels.interpreted import main; main(sys.argv[1])", name)
    assert done.returncode == 0, done
    assert "equal" in done.stdout
