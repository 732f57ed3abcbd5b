"""Test inputs of every operation with several implementations: packed rows, odd lengths, empty experts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seektune.kernels import Chosen, Prefix, quantize_fp4, sort_by_expert
from seektune.sequence import SequenceLayout

Case = Callable[[torch.dtype], tuple[Any, ...]]

PACKED = torch.tensor([[1] * 90 + [2] * 3 + [0] * 6 + [3] * 62, [4] * 161])
"""Two rows: documents of several lengths with padding between them, and one long document."""


def leaf(dtype: torch.dtype, *shape: int, size: float = 1.0) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * size).to(dtype).requires_grad_()


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what the model computes in fp32: fp32, or fp64 for gradient checks."""
    return torch.promote_types(dtype, torch.float32)


def attention(kind: str, heads: int = 3, width: int = 16, before: int = 0, documents: Tensor = PACKED) -> Case:
    """`before` keys precede the first query, as on the second rank of a context axis."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        layout = SequenceLayout.from_documents(documents)
        rows, queries = len(documents), documents.shape[1] - before
        windows = layout.windows(8)
        entries = 0 if kind == "window" else windows.last_BE.shape[1]
        first, count = (x[:, before:] * min(entries, 1) for x in (windows.first_BT, windows.count_BT))
        visible: Any = Prefix(first, count)
        if kind == "chosen":
            index = torch.rand(rows, queries, entries).argsort(-1)[..., :5]
            visible = Chosen(torch.where((index >= first[..., None]) & (index < (first + count)[..., None]), index, -1))
        inputs = leaf(dtype, rows, queries, heads, width), leaf(dtype, rows, documents.shape[1], width)
        sink = leaf(torch.float32 if dtype == torch.bfloat16 else dtype, heads)
        return *inputs, leaf(dtype, rows, entries, width), sink, layout.positions[:, before:], 20, visible

    return make


def index_case(kind: str, documents: Tensor = PACKED, window: float = 0.0) -> Case:
    """Index vectors, queries of attention, and entries of which some queries see none; `window` is added to the log of
    what the window gets of the attention."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        windows, (rows, length) = SequenceLayout.from_documents(documents).windows(8), documents.shape
        entries, heads = windows.last_BE.shape[1], 3
        visible: Any = Prefix(windows.first_BT, windows.count_BT)
        if kind == "chosen":
            index = torch.rand(rows, length, entries).argsort(-1)[..., :5]
            end = (windows.first_BT + windows.count_BT)[..., None]
            visible = Chosen(torch.where((index >= windows.first_BT[..., None]) & (index < end), index, -1))
        vectors = leaf(dtype, rows, length, 4, 6), leaf(dtype, rows, entries, 6), leaf(dtype, rows, length, 4)
        attending, rest = leaf(dtype, rows, length, heads, 16), leaf(wide(dtype), rows, length, heads)
        constants = (x.detach() for x in (attending, rest + window, leaf(dtype, rows, entries, 16)))
        return *vectors, *constants, visible

    return make


def missing_keys(dtype: torch.dtype) -> tuple[Any, ...]:
    """Positions late in a document whose earlier keys are missing."""
    positions, nothing = torch.arange(1000, 1070).unsqueeze(0), torch.zeros(1, 70, dtype=torch.long)
    inputs = leaf(dtype, 1, 70, 2, 8), leaf(dtype, 1, 70, 8), leaf(dtype, 1, 0, 8), leaf(wide(dtype), 2)
    return *inputs, positions, 20, Prefix(nothing, nothing)


def no_queries(dtype: torch.dtype) -> tuple[Any, ...]:
    nothing = torch.zeros(1, 0, dtype=torch.long)
    inputs = leaf(dtype, 1, 0, 2, 8), leaf(dtype, 1, 3, 8), leaf(dtype, 1, 2, 8), leaf(wide(dtype), 2)
    return *inputs, nothing, 4, Prefix(nothing, nothing)


def experts(tokens: int, chosen: tuple[int, ...] = (0, 1, 2, 4, 6)) -> Case:
    """Seven experts, of which tokens choose three among `chosen`; the first token chooses one of them twice."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        scores = torch.full((tokens, 7), -1.0)
        scores[:, list(chosen)] = torch.rand(tokens, len(chosen))
        experts_NK = scores.topk(3, dim=1).indices
        weights = torch.rand(tokens, 3)
        if tokens:
            experts_NK[0, 2], weights[0, 2] = experts_NK[0, 1], 0.0
        order, counts = sort_by_expert(experts_NK, 7)
        w1, w2, w3 = (leaf(dtype, 7, *shape, size=0.3) for shape in ((6, 10), (10, 6), (6, 10)))
        weights_P = weights.flatten()[order].to(wide(dtype)).requires_grad_()
        return leaf(dtype, tokens, 10, size=2.0), order // 3, weights_P, w1, w2, w3, counts.tolist(), 1.5

    return make


def read_case(tokens: int, streams: int = 4, width: int = 12) -> Case:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        outputs, high = streams * (2 + streams), wide(dtype)
        parameters = leaf(high, outputs, streams * width, size=0.3), leaf(high, outputs), leaf(high, 3)
        return leaf(dtype, tokens, streams, width), *parameters, 5, 1e-3, 1e-2

    return make


def write_case(tokens: int) -> Case:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        high = wide(dtype)
        return leaf(dtype, tokens, 4, 12), leaf(dtype, tokens, 12), leaf(high, tokens, 4), leaf(high, tokens, 4, 4)

    return make


def pool_case(ratio: int, overlap: bool, documents: Tensor = PACKED) -> Case:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        windows, high, channels = SequenceLayout.from_documents(documents).windows(ratio), wide(dtype), 6
        values, gates = leaf(high, *documents.shape, channels), leaf(high, *documents.shape, channels)
        return values, gates, leaf(high, ratio, channels), windows.last_BE, windows.position_BE, overlap

    return make


def lowbit_experts(pack: Callable[[Tensor], tuple[Tensor, Tensor]], outputs: int, inputs: int, *counts: int) -> Case:
    """Experts whose matrices are packed one by one."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        packed = [pack(torch.randn(outputs, inputs)) for _ in counts]
        weights = [weight for weight, _ in packed]
        scales = [scale for _, scale in packed]
        return leaf(dtype, sum(counts), inputs), weights, scales, list(counts)

    return make


def random_angles(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor]:
    turns = torch.rand(shape, dtype=torch.float64).to(wide(dtype)) * 6
    return turns.cos(), turns.sin()


def weighted_case(pairs: int, width: int) -> Case:
    """Gates and ups of pairs, some of them clamped, and the pairs' weights."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        weights = torch.rand(pairs, dtype=torch.float64).to(wide(dtype)).requires_grad_()
        return leaf(dtype, pairs, width), leaf(dtype, pairs, width), weights, 0.7

    return make


def far_apart(weight: Tensor) -> tuple[Tensor, Tensor]:
    """FP4 with groups of zeros, and groups of 32 that are 2^20 times as large as others of the same row."""
    weight = weight.clone()
    weight[0, :32] *= 2.0**20
    weight[:, 64:96] = 0
    return quantize_fp4(weight)


def divergence_case(tokens: int, temperature: float, reverse: bool, weighted: bool = False) -> Case:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        teacher = leaf(dtype, tokens, 5).detach(), leaf(dtype, 11, 5).detach()
        weights = torch.rand(tokens, dtype=wide(dtype)) if weighted else None
        return leaf(dtype, tokens, 6), leaf(dtype, 11, 6), *teacher, weights, temperature, reverse

    return make


TOKENS_OF_PAIRS = torch.tensor([0, 3, 1, 3, 4, 0, 2, 4, 1, 2])
"""Two pairs of each of five tokens."""


def top_k_case(tokens: int, kept: int, temperature: float, reverse: bool, weighted: bool = False) -> Case:
    """Of a vocabulary of 11 tokens."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        whole = torch.log_softmax(leaf(wide(dtype), tokens, 11).detach(), dim=1)
        logprobs, ids = whole.topk(kept, dim=1)
        rest = whole.scatter(1, ids, -torch.inf).logsumexp(dim=1, keepdim=True)
        weights = torch.rand(tokens, dtype=wide(dtype)) if weighted else None
        found = ids.int(), torch.cat([logprobs, rest], dim=1), weights
        return leaf(dtype, tokens, 6), leaf(dtype, 11, 6), *found, temperature, reverse

    return make


CASES: dict[str, dict[str, Case]] = {
    "add_pairs": {
        "two each": lambda dtype: (leaf(dtype, 10, 1030), TOKENS_OF_PAIRS, 5),
        "one each": lambda dtype: (leaf(dtype, 3, 7), torch.tensor([2, 0, 1]), 3),
    },
    "gather_tokens": {"two each": lambda dtype: (leaf(dtype, 5, 1030), TOKENS_OF_PAIRS)},
    "weighted_swiglu": {
        "two blocks": weighted_case(5, 1030),
        "odd": weighted_case(3, 7),
        "none": weighted_case(0, 7),
    },
    "sparse_attention": {
        "window": attention("window"),
        "prefix": attention("prefix"),
        "chosen": attention("chosen"),
        "prefix, keys before": attention("prefix", before=77),
        "chosen, keys before": attention("chosen", before=160),
        "one head": attention("prefix", heads=1, width=2),
        "few keys": missing_keys,
        "no queries": no_queries,
    },
    "index_divergence": {
        "prefix": index_case("prefix"),
        "chosen": index_case("chosen"),
        "nothing to see": index_case("prefix", PACKED[:1, 90:96]),
        "no entry": index_case("prefix", PACKED[:1, :5]),
        "little attention": index_case("prefix", PACKED[:1, :40], window=100.0),
    },
    "clamped_swiglu": {
        "rows": lambda dtype: (leaf(dtype, 37, 9, size=2.0), leaf(dtype, 37, 9, size=2.0), 1.5),
        "none": lambda dtype: (leaf(dtype, 0, 9), leaf(dtype, 0, 9), 1.5),
    },
    "expert_mlp": {
        "some empty": experts(50),
        "long runs": experts(1500, (2, 3, 5)),
        "one token": experts(1),
        "none": experts(0),
    },
    "grouped_linear": {
        "rows": lambda dtype: (leaf(dtype, 2, 7, 3, 21), leaf(dtype, 15, 21), 3),
        "none": lambda dtype: (leaf(dtype, 0, 3, 21), leaf(dtype, 15, 21), 3),
    },
    "linear": {
        "one": lambda dtype: (leaf(dtype, 1, 1, 130), leaf(dtype, 67, 130)),
        "rows": lambda dtype: (leaf(dtype, 2, 7, 37), leaf(dtype, 3, 37)),
        "none": lambda dtype: (leaf(dtype, 0, 5), leaf(dtype, 3, 5)),
    },
    "hyper_collect": {
        "33": lambda dtype: (
            *(
                leaf(dtype, 3, 11, 4, 12),
                leaf(wide(dtype), 4, 48, size=0.3),
                leaf(wide(dtype), 4),
                leaf(wide(dtype), 1),
            ),
            *(1e-3, 1e-2),
        ),
    },
    "hyper_read": {
        "33": read_case(33),
        "one": read_case(1),
        "none": read_case(0),
        "two streams": read_case(600, 2, 3),
        "wide": read_case(5, 2, 150),
    },
    "hyper_write": {"33": write_case(33), "many": write_case(3000), "none": write_case(0)},
    "sinkhorn": {
        "one": lambda dtype: (leaf(wide(dtype), 1, 4, 4), 20, 1e-6),
        "many": lambda dtype: (leaf(wide(dtype), 5, 211, 4, 4), 3, 1e-2),
        "none": lambda dtype: (leaf(wide(dtype), 2, 0, 4, 4), 20, 1e-6),
    },
    "pool_windows": {
        "overlap": pool_case(4, True),
        "apart": pool_case(8, False),
        "no window": pool_case(8, False, PACKED[:, 90:96]),
        "no entry": pool_case(128, False, PACKED[:, :9]),
    },
    "rms_norm": {
        "rows": lambda dtype: (leaf(dtype, 3, 71, 24), leaf(dtype, 24), 1e-2),
        "none": lambda dtype: (leaf(dtype, 1, 0, 24), leaf(dtype, 24), 1e-2),
    },
    "rotate": {
        "heads": lambda dtype: (leaf(dtype, 2, 17, 3, 15), *random_angles(dtype, 2, 17, 1, 4)),
        "vectors": lambda dtype: (leaf(dtype, 2, 17, 8), *random_angles(dtype, 2, 17, 4)),
    },
    "norm_rope": {
        "heads": lambda dtype: (leaf(dtype, 2, 17, 3, 14), *random_angles(dtype, 2, 17, 4), 1e-2),
        "none": lambda dtype: (leaf(dtype, 1, 0, 3, 14), *random_angles(dtype, 1, 0, 4), 1e-2),
    },
    "fake_quantize_fp4": {"columns": lambda dtype: (leaf(dtype, 3, 5, 96), 32)},
    "fake_quantize_fp8": {
        "columns": lambda dtype: (leaf(dtype, 3, 5, 128), 64),
        "part of a group": lambda dtype: (leaf(dtype, 7, 100), 64),
    },
    "fake_quantize_weight": {
        "fp4": lambda dtype: (leaf(dtype, 3, 7, 96), "fp4"),
        "fp8": lambda dtype: (leaf(dtype, 2, 130, 140), "fp8"),
        "one matrix": lambda dtype: (leaf(dtype, 5, 64, size=1e-3), "fp4"),
    },
    "linear_divergence": {
        "forward": divergence_case(7, 1.0, False),
        "two chunks": divergence_case(515, 2.0, False, weighted=True),
        "reverse": divergence_case(9, 0.5, True, weighted=True),
    },
    "top_k_divergence": {
        "forward": top_k_case(7, 3, 1.0, False),
        "two chunks": top_k_case(515, 4, 2.0, False, weighted=True),
        "reverse": top_k_case(9, 2, 0.8, True, weighted=True),
        "all tokens": top_k_case(5, 11, 1.5, False),
    },
    "linear_cross_entropy": {
        "one": lambda dtype: (leaf(dtype, 1, 6), leaf(dtype, 11, 6), torch.randint(11, (1,))),
        "two chunks": lambda dtype: (leaf(dtype, 1025, 6), leaf(dtype, 11, 6), torch.randint(11, (1025,))),
        "none": lambda dtype: (leaf(dtype, 0, 6), leaf(dtype, 11, 6), torch.randint(11, (0,))),
        "weights": lambda dtype: (
            *(leaf(dtype, 1030, 6), leaf(dtype, 11, 6), torch.randint(11, (1030,))),
            torch.rand(1030, dtype=wide(dtype)) * (torch.rand(1030) < 0.8),
        ),
    },
    "linear_z_loss": {
        "two chunks": lambda dtype: (leaf(dtype, 1025, 6), leaf(dtype, 11, 6), torch.randint(11, (1025,)), None, 0.1),
        "none": lambda dtype: (leaf(dtype, 0, 6), leaf(dtype, 11, 6), torch.randint(11, (0,)), None, 0.1),
        "weights": lambda dtype: (
            *(leaf(dtype, 1030, 6), leaf(dtype, 11, 6), torch.randint(11, (1030,))),
            *(torch.rand(1030, dtype=wide(dtype)) * (torch.rand(1030) < 0.8), 0.01),
        ),
    },
    "token_logprobs": {
        "one": lambda dtype: (leaf(dtype, 1, 6), leaf(dtype, 11, 6), torch.randint(11, (1,))),
        "odd": lambda dtype: (leaf(dtype, 13, 7), leaf(dtype, 1500, 7), torch.randint(1500, (13,))),
        "many": lambda dtype: (leaf(dtype, 1025, 6), leaf(dtype, 11, 6), torch.randint(11, (1025,))),
        "none": lambda dtype: (leaf(dtype, 0, 6), leaf(dtype, 11, 6), torch.randint(11, (0,))),
    },
}
"""Inputs by operation and case. Operations without a gradient, such as `index_topk`, have tests of their own."""
