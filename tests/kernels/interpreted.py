"""Compare a Triton kernel with its reference: `TRITON_INTERPRET=1 python -m tests.kernels.interpreted NAME`."""

import sys
from functools import partial

import torch
from torch import Tensor

from seektune.kernels import (
    Prefix,
    encode_rows,
    index_topk,
    quantize_fp4,
    quantize_fp8,
    sort_by_expert,
    static_kernels,
)
from seektune.kernels.triton import fp8_grouped_mm, fp8_linear, index_scores, lowbit_grouped_mm, norm, pairs
from seektune.kernels.triton import sparse_attention_gradients as gradients
from seektune.sequence import SequenceLayout

from .inputs import CASES, attention, far_apart, leaf, lowbit_experts, missing_keys, no_queries
from .test_codecs import assert_identical
from .test_twins import BOUNDS
from .twins import kernel, run

BOUND = 2e-5
SMALL = torch.tensor([[1] * 25 + [2] * 2 + [0] * 2 + [3] * 13])
ATTENTION = {
    "window": attention("window", documents=SMALL),
    "prefix, keys before": attention("prefix", before=7, documents=SMALL),
    "chosen, keys before": attention("chosen", before=20, documents=SMALL),
    "few keys": missing_keys,
    "no queries": no_queries,
}
"""Few queries, because an interpreted program takes some ten milliseconds."""
quantize_fp8_f32 = partial(quantize_fp8, power_of_two=False)
LOWBIT = {
    "fp4": lowbit_experts(quantize_fp4, 70, 160, 4, 0, 17, 1),
    "fp8": lowbit_experts(quantize_fp8, 200, 130, 0, 4, 17),
    "fp8, F32 scales": lowbit_experts(quantize_fp8_f32, 130, 200, 1, 0),
    "inputs of V4-Flash": lowbit_experts(quantize_fp4, 20, 4096, 1),
    "outputs of V4-Flash": lowbit_experts(quantize_fp4, 2048, 32, 1),
}
"""Experts without pairs, with one, and with more than a tile; widths that are no multiple of a tile."""
FP8 = LOWBIT | {"fp4, scales far apart": lowbit_experts(far_apart, 70, 160, 3, 0, 1)}
SPECIAL = {"sparse_attention": ATTENTION, "lowbit_expert_linear": LOWBIT, "fp8_expert_linear": FP8}
MANY = "many"
"""The case of thousands of tokens, for chunks of the eager kernels; Triton has a program for each token."""


def compare(found: list[Tensor], expected: list[Tensor], bound: float = BOUND) -> int:
    """Assert equality up to rounding; returns the number of elements."""
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        scale = max(float(y.detach().abs().max()), 1e-3) if y.numel() else 1.0
        torch.testing.assert_close(x.double() / scale, y.double() / scale, rtol=0, atol=bound)
    return sum(x.numel() for x in expected)


def compare_index_topk() -> int:
    """Compare the top-k of a packed row with many ties, with all entries in one program and in several."""
    windows = SequenceLayout.from_documents(torch.tensor([[1] * 20 + [2] * 3 + [0] * 2 + [3] * 135])).windows(4)
    visible = Prefix(windows.first_BT[:, ::5], windows.count_BT[:, ::5])
    queries = visible.first_BT.shape[1]
    arguments = torch.randn(1, queries, 2, 12), torch.randn(1, 40, 12), torch.randn(1, queries, 2), visible, 5
    expected = index_topk.reference(*arguments).index_BTK.sort(dim=-1).values
    for span in (64, 32):
        index_scores.SPAN = span
        found = index_topk.on_gpu(*arguments).index_BTK
        assert torch.equal(found.sort(dim=-1).values, expected)
    return expected.numel()


def compare_split_lists() -> int:
    """Compare attention to chosen entries, a few queries at a time, several programs for the gradient of an entry."""
    gradients.LIST_VALUES = 4000
    gradients.SHARE = 3
    arguments = ATTENTION["chosen, keys before"](torch.float32)
    pair = kernel("sparse_attention")
    return compare(run(pair.on_gpu, arguments), run(pair.reference, arguments))


def compare_large_tiles() -> int:
    """Compare packed products with the tiles of many pairs, which fp32 inputs do not get."""
    lowbit_grouped_mm.TILES = lowbit_grouped_mm.TILES[1:]
    pair = kernel("lowbit_expert_linear")
    arguments = lowbit_experts(quantize_fp4, 160, 96, 70, 0, 3)(torch.float32)
    return compare(run(pair.on_gpu, arguments), run(pair.reference, arguments))


def compare_few_tokens() -> int:
    """Compare a packed linear layer with few tokens, in a row of any number of dims, which is one grouped product."""
    pair = kernel("lowbit_linear")
    for pack in (quantize_fp4, quantize_fp8):
        arguments = torch.randn(2, 3, 160).requires_grad_(), *pack(torch.randn(70, 160))
        found = compare(run(pair.on_gpu, arguments), run(pair.reference, arguments))
    return found


def compare_gathered_lowbit() -> int:
    """Compare packed products of pairs in any order of experts, and those of a layer, as static steps compute them."""
    experts = torch.tensor([3, 0, 3, 1])
    pair = kernel("gathered_lowbit_linear")
    found = 0
    for pack in (quantize_fp4, quantize_fp8, quantize_fp8_f32):
        packed = [pack(torch.randn(70, 160)) for _ in range(4)]
        weight, scale = (torch.stack(each) for each in zip(*packed, strict=True))
        x = torch.randn(4, 160)
        own = weight[0].contiguous(), scale[0].contiguous()
        found += compare([pair.on_gpu(x, experts, weight, scale)], [pair.reference(x, experts, weight, scale)])
        with static_kernels():
            one = kernel("lowbit_linear").on_gpu(x, *own)
        found += compare([one], [kernel("lowbit_linear").reference(x, *own)])
        filled = lowbit_grouped_mm.filled_table(own, 4, x.device)
        assert torch.equal(filled, lowbit_grouped_mm.expert_table(own, [4]))
    return found


def compare_fp8_tiles() -> int:
    """Compare FP8 products with the tiles of many rows, of experts and of a linear layer; rows of all magnitudes."""
    fp8_grouped_mm.TILES = fp8_grouped_mm.TILES[1:]
    sizes = torch.tensor([1e-6, 1.0, 0.0, 300.0, 1e6, 1e-3, 5.0])
    for pack in (quantize_fp4, quantize_fp8):
        x = (torch.randn(7, 160) * sizes[:, None]).requires_grad_()
        pair = kernel("fp8_linear")
        arguments = x, *pack(torch.randn(200, 160))
        compare(run(pair.on_gpu, arguments)[1:], run(pair.reference, arguments)[1:])
        for found, expected in zip(pair.on_gpu(*arguments), pair.reference(*arguments), strict=True):
            compare([found], [expected])
    pair = kernel("fp8_expert_linear")
    arguments = lowbit_experts(quantize_fp4, 140, 96, 70, 0, 3)(torch.float32)
    return compare(run(pair.on_gpu, arguments), run(pair.reference, arguments))


def compare_fake_quantize() -> int:
    """Compare roundings bit by bit: numbers of all sizes, ties, zeros of both signs and subnormal numbers."""
    edges = [0.0, -0.0, 1e-45, 2.0**-126, -1e-20, 0.25, -0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 448.0, -464.0, 3e38]
    found = 0
    for size in (1e-45, 1e-39, 1e-6, 1.0, 1e37):
        halves = torch.randint(-24, 25, (1, 40, 96)) * 0.25
        for x in (torch.randn(2, 130, 160) * size, halves * size, torch.tensor(edges).repeat(8).view(1, 4, 32)):
            for name, arguments in (
                ("fake_quantize_weight", ("fp4",)),
                ("fake_quantize_weight", ("fp8",)),
                ("fake_quantize_fp4", (32,)),
                ("fake_quantize_fp8", (32,)),
            ):
                rounded = kernel(name).on_gpu(x, *arguments)
                assert_identical(rounded, kernel(name).reference(x, *arguments))
                found += rounded.numel()
            for each in (x.flatten(0, 1), x.flatten(0, 1).bfloat16()):
                (codes, scales), (expected, factors) = encode_rows.on_gpu(each), encode_rows.reference(each)
                assert_identical(codes.view(torch.uint8), expected.view(torch.uint8))
                assert_identical(scales, factors)
    broken = torch.ones(4, 128)
    broken[1, 3] = torch.nan
    assert encode_rows.on_gpu(broken)[0].float()[1, 3].isnan()
    for kind in ("fp4", "fp8"):
        assert kernel("fake_quantize_weight").on_gpu(broken, kind)[1, 3].isnan(), "NaN must propagate"
    return found


def compare_rms_norm() -> int:
    """Compare norms where a program of backward has several vectors, and where there are none."""
    norm.PROGRAMS = 50
    pair = kernel("rms_norm")
    cases = [case(torch.float32) for case in CASES["rms_norm"].values()]
    return sum(compare(run(pair.on_gpu, arguments), run(pair.reference, arguments)) for arguments in cases)


def compare_pairs() -> int:
    """Compare rows of pairs and sums of pairs with indexing; a token has no pair, and another has one expert twice."""
    tokens = torch.tensor([0, 3, 1, 3, 4, 0, 3, 4, 4])
    plan = pairs.PairPlan.of(tokens, 6)

    def indexed(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return x[tokens], torch.zeros(6, rows.shape[1]).index_add(0, tokens, rows)

    def planned(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return pairs.gather_planned(x, plan), pairs.add_planned(rows, plan)

    for name in ("add_pairs", "gather_tokens"):
        for case in CASES[name].values():
            arguments = case(torch.float32)
            compare(run(kernel(name).on_gpu, arguments), run(kernel(name).reference, arguments))
    arguments = leaf(torch.float32, 6, 1030), leaf(torch.float32, 9, 1030)
    return compare(run(planned, arguments), run(indexed, arguments))


def compare_experts() -> int:
    """Compare bf16 experts of widths for grouped products, which run on a CPU too, around the interpreted kernels."""
    experts_NK = torch.rand(40, 7).mul(torch.tensor([9, 1, 0, 1, 1, 1, 1])).topk(3).indices
    order, counts = sort_by_expert(experts_NK, 7)
    w1, w2, w3 = (leaf(torch.bfloat16, 7, *shape, size=0.2) for shape in ((32, 64), (64, 32), (32, 64)))
    inputs = leaf(torch.bfloat16, 40, 64, size=2.0), order // 3, torch.rand(120).requires_grad_()
    arguments = *inputs, w1, w2, w3, counts.tolist(), 7.0
    pair = kernel("expert_mlp")
    return compare(run(pair.on_gpu, arguments), run(pair.reference, arguments), BOUNDS[torch.bfloat16])


def compare_fp8_fallbacks() -> int:
    """Compare FP8 products on a GPU without them, and their gradients where decoding is not fused."""
    experts = kernel("fp8_expert_linear")
    linear = kernel("fp8_linear")
    cases = [
        (experts, lowbit_experts(quantize_fp4, 70, 160, 4, 0, 3)(torch.float32), BOUND),
        (experts, lowbit_experts(quantize_fp8, 128, 96, 5, 0, 3)(torch.bfloat16), BOUNDS[torch.bfloat16]),
        (linear, (leaf(torch.float32, 2, 3, 160), *quantize_fp8(torch.randn(70, 160))), BOUND),
    ]
    lowbit_grouped_mm.FUSED_ROWS = 0
    for pair, arguments, bound in cases:
        compare(run(pair.on_gpu, arguments), run(pair.reference, arguments), bound)
    fp8_linear.has_fp8_products = lambda device: False
    return sum(compare(run(pair.on_gpu, given), run(pair.reference, given), bound) for pair, given, bound in cases)


CHECKS = {
    "experts": compare_experts,
    "pairs": compare_pairs,
    "rms_norm": compare_rms_norm,
    "fake_quantize": compare_fake_quantize,
    "index_topk": compare_index_topk,
    "split_lists": compare_split_lists,
    "large_tiles": compare_large_tiles,
    "few_tokens": compare_few_tokens,
    "gathered_lowbit": compare_gathered_lowbit,
    "fp8_tiles": compare_fp8_tiles,
    "fp8_fallbacks": compare_fp8_fallbacks,
}


def main(name: str) -> None:
    """Compare all cases of an operation."""
    torch.manual_seed(0)
    if name in CHECKS:
        print("equal", CHECKS[name]())
        return
    cases = SPECIAL[name] if name in SPECIAL else {k: v for k, v in CASES[name].items() if k != MANY}
    for label, case in cases.items():
        arguments = case(torch.float32)
        print(label, "equal", compare(run(kernel(name).on_gpu, arguments), run(kernel(name).reference, arguments)))
    if name == "clamped_swiglu":
        bad = torch.tensor([torch.nan, 1.0]), torch.tensor([1.0, torch.nan])
        assert kernel(name).on_gpu(*bad, 1.5).isnan().all(), "NaN must propagate"


if __name__ == "__main__":
    main(sys.argv[1])
