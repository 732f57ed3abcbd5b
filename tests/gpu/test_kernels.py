"""On a GPU every operation equals its definition in plain torch, values and gradients, at odd and released shapes."""

from typing import Any

import pytest
import torch

from seektune.kernels import (
    Prefix,
    dequantize,
    dequantize_fp4,
    dequantize_fp8,
    index_topk,
    quantize_fp4,
    quantize_fp8,
    sort_by_expert,
)
from seektune.sequence import SequenceLayout
from tests.kernels.inputs import Case, leaf
from tests.kernels.test_codecs import every_fp4_byte, every_fp8_byte
from tests.kernels.test_twins import PAIRS
from tests.kernels.twins import kernel, run

from .agreement import BOUNDS, agree, definition, exact, frozen_experts, released
from .to_device import to_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_the_operation_is_its_definition(name: str, case: Case, dtype: torch.dtype):
    arguments = case(dtype)
    agree(run(kernel(name), to_device(arguments, "cuda")), definition(name, arguments, dtype), BOUNDS[dtype])


@pytest.mark.parametrize("kind", ["window", "prefix", "chosen"])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_attention_at_the_released_width(kind: str, dtype: torch.dtype):
    arguments = to_device(released(kind, dtype, 700), "cuda")
    expected = run(kernel("sparse_attention").reference, exact(arguments))
    agree(run(kernel("sparse_attention"), arguments), expected, BOUNDS[dtype])


def test_attention_gives_the_same_bits_again():
    arguments = to_device(released("chosen", torch.bfloat16, 600), "cuda")
    for once, again in zip(*(run(kernel("sparse_attention"), arguments) for _ in range(2)), strict=True):
        assert torch.equal(once, again)


@pytest.mark.parametrize("frozen", [False, True])
def test_experts_of_widths_for_grouped_products(frozen: bool):
    """Seven experts, two of them without tokens, one with most; what is frozen has no gradient."""
    experts_NK = torch.tensor([0, 1, 2, 4, 6])[torch.rand(900, 5).mul(torch.tensor([9, 1, 1, 1, 1])).topk(3).indices]
    order, counts = sort_by_expert(experts_NK, 7)
    weights = torch.rand(2700).requires_grad_()
    matrices = (leaf(torch.bfloat16, 7, *shape, size=0.2) for shape in ((32, 64), (64, 32), (32, 64)))
    matrices = (weight.detach() if frozen else weight for weight in matrices)
    arguments = leaf(torch.bfloat16, 900, 64, size=2.0), order // 3, weights, *matrices, counts.tolist(), 7.0
    expected = run(kernel("expert_mlp").reference, arguments)
    once, again = (run(kernel("expert_mlp"), to_device(arguments, "cuda")) for _ in range(2))
    agree(once, expected, BOUNDS[torch.bfloat16])
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))


@pytest.mark.parametrize("fused_rows", [0, 512])
@pytest.mark.parametrize("form", ["fp4", "fp8", "bf16"])
def test_products_of_frozen_experts(form: str, fused_rows: int, monkeypatch: pytest.MonkeyPatch):
    """Decoded a few experts at a time or in the product; some experts have no tokens."""
    from seektune.kernels.triton import lowbit_grouped_mm
    from seektune.kernels.triton import lowbit_linear as on_gpu

    monkeypatch.setattr(on_gpu, "VALUES", 3 * 128 * 160)
    monkeypatch.setattr(lowbit_grouped_mm, "FUSED_ROWS", fused_rows)
    counts, x = [40, 0, 7, 300, 1, 0, 65, 3], leaf(torch.bfloat16, 416, 160)
    weights = torch.randn(8, 128, 160)
    if form == "bf16":
        arguments: tuple[Any, ...] = x, weights.bfloat16(), counts
        name = "expert_linear"
    else:
        packed, scales = zip(*((quantize_fp4 if form == "fp4" else quantize_fp8)(w) for w in weights), strict=True)
        arguments, name = (x, packed, scales, counts), "lowbit_expert_linear"
    found = run(kernel(name), to_device(arguments, "cuda"))
    agree(found, run(kernel(name).reference, arguments), 1e-2)


@pytest.mark.parametrize("form", ["fp4", "fp8"])
def test_products_of_fp8_inputs(form: str):
    """On FP8 tensor cores where the GPU has them, otherwise of rounded inputs in bf16."""
    _, arguments = frozen_experts(form)
    for name, given in (
        ("fp8_expert_linear", arguments),
        ("fp8_linear", (arguments[0], arguments[1][0], arguments[2][0])),
    ):
        agree(run(kernel(name), to_device(given, "cuda")), run(kernel(name).reference, given), 1e-2)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tokens", [50, 600])
@pytest.mark.parametrize("pack", [quantize_fp4, quantize_fp8])
def test_products_of_frozen_maps(pack: Any, tokens: int, groups: int):
    """Fused with decoding for few tokens and one group."""
    x = leaf(torch.bfloat16, tokens, 160) if groups == 1 else leaf(torch.bfloat16, tokens, groups, 160)
    arguments = x, *pack(torch.randn(256, 160)), groups
    found = run(kernel("lowbit_linear"), to_device(arguments, "cuda"))
    agree(found, run(kernel("lowbit_linear").reference, arguments), 1e-2)


@pytest.mark.parametrize("span", [4096, 64])
@pytest.mark.parametrize("width", [12, 128])
def test_the_index_chooses_what_the_definition_chooses(width: int, span: int, monkeypatch: pytest.MonkeyPatch):
    """A program holds all entries of a query, or fewer than it sees."""
    from seektune.kernels.triton import index_scores

    monkeypatch.setattr(index_scores, "SPAN", span)
    documents = torch.tensor([[1] * 460 + [2] * 3 + [0] * 6 + [3] * 451])
    length = documents.shape[1]
    windows = SequenceLayout.from_documents(documents).windows(4)
    # whole numbers: scores are exact in any order of summation
    q, keys, weights = (
        torch.randint(-3, 4, shape).float()
        for shape in ((1, length, 8, width), (1, length // 4, width), (1, length, 8))
    )
    arguments = q, keys, weights, Prefix(windows.first_BT, windows.count_BT), 64
    found, expected = index_topk(*to_device(arguments, "cuda")), index_topk.reference(*arguments)
    assert torch.equal(found.index_BTK.cpu().sort(dim=-1).values, expected.index_BTK.sort(dim=-1).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_bit_weights_are_multiplied_out_to_the_last_bit(dtype: torch.dtype):
    packed, scale = every_fp4_byte()
    weight = torch.randn(384, 416)
    codes = every_fp8_byte()
    scales = torch.full((-(-codes.shape[0] // 128), -(-codes.shape[1] // 128)), 124, dtype=torch.uint8)
    cases = [
        (packed, scale, dequantize_fp4),
        (*quantize_fp4(weight), dequantize_fp4),
        (*quantize_fp8(weight, True), dequantize_fp8),
        (codes, scales.view(torch.float8_e8m0fnu), dequantize_fp8),
    ]
    for stored, factor, decode in cases:
        expected = decode(stored, factor).to(dtype)
        found = dequantize(stored.cuda(), factor.cuda(), dtype).cpu()
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
