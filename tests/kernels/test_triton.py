"""Triton kernels equal the reference, values and gradients, in Triton's interpreter.

It runs in a subprocess because the interpreter is chosen when Triton is imported; it does not support bf16 products.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

OPERATIONS = (
    *("clamped_swiglu", "sinkhorn", "sparse_attention", "quantized_expert_linear", "index_topk"),
    *("hyper_read", "hyper_write", "rotate", "norm_rope", "token_logprobs"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_interpreted_kernel_equals_reference(name: str):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.kernels.interpreted", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
