"""Triton kernels equal the plain ones, values and gradients, run by Triton's interpreter in a process of its own.

The interpreter is chosen when Triton is imported; it has no products of bf16.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

OPERATIONS = (
    *("clamped_swiglu", "sinkhorn", "sparse_attention", "quantized_expert_linear", "index_topk"),
    *("hyper_read", "hyper_write", "rotate", "norm_rope"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_interpreted_kernel_equals_the_plain_one(name: str):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.kernels.interpreted", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
