"""The Triton kernel of `dequantize` equals the reference bit for bit, in Triton's interpreter."""

import pytest

from tests.forks import Run

SCRIPT = """
import torch
from seektune.kernels import dequantize_fp4, dequantize_fp8, quantize_fp4, quantize_fp8
from seektune.kernels.dequantize import KERNEL
from tests.kernels.test_codecs import every_fp4_byte, every_fp8_byte, assert_identical
from tests.kernels.test_quantize import scales
from seektune.kernels import lowbit_linear
from seektune.kernels.triton.lowbit_grouped_mm import FUSED_ROWS
torch.manual_seed(0)

def dequantize(weight, scale, dtype, out=None):
    return KERNEL.on_gpu(weight, scale, dtype, out)

def same(found, expected):
    # the interpreter's cast to bf16 truncates instead of rounding, and loses numbers below 2^-126
    if expected.dtype == torch.float32:
        return assert_identical(found, expected)
    exact = (expected.abs() >= 2.0**-126) | expected.isnan()
    assert_identical(found.where(exact, 1), expected.where(exact, 1))

packed, scale = every_fp4_byte()
for dtype in (torch.float32, torch.bfloat16):
    same(dequantize(packed, scale, dtype), dequantize_fp4(packed, scale).to(dtype))
    for byte in (0, 1, 2, 64, 127, 190, 254, 255):
        factor = scales([byte], 1, 1)
        same(dequantize(every_fp8_byte(), factor, dtype), dequantize_fp8(every_fp8_byte(), factor).to(dtype))
    for shape in ((200, 160), (1, 32), (129, 416)):
        weight = torch.randn(shape)
        same(dequantize(*quantize_fp4(weight), dtype), dequantize_fp4(*quantize_fp4(weight)).to(dtype))
        for power in (True, False) if dtype == torch.float32 else (True,):
            stored = quantize_fp8(weight, power)
            same(dequantize(*stored, dtype), dequantize_fp8(*stored).to(dtype))
codes = torch.zeros(1, 128, dtype=torch.uint8)
codes[0, 5] = 0x7F
assert dequantize(codes.view(torch.float8_e4m3fn), scales([127], 1, 1), torch.float32)[0, 5].isnan()

# the GPU's products with many tokens dequantize with this kernel in forward and backward, and give the same values
def products(x, linear):
    x = x.clone().requires_grad_()
    y = linear(x, *fp8, 1)
    y.square().sum().backward()
    return y.detach(), x.grad

x, fp8 = torch.randn(FUSED_ROWS + 1, 64), quantize_fp8(torch.randn(32, 64))
for found, wanted in zip(products(x, lowbit_linear.on_gpu), products(x, lowbit_linear)):
    assert_identical(found, wanted)
print("equal")
"""


@pytest.mark.slow
def test_triton_dequantize_equals_reference_for_every_byte(in_interpreter: Run):
    done = in_interpreter(SCRIPT)
    assert done.stdout.strip().endswith("equal"), done
