"""Times of single kernels at the released width: attention by kind of entries, the index choice, Sinkhorn, experts."""

from functools import partial

import torch

from bench.gpu.clock import BF16, both_ways, leaf, milliseconds
from bench.gpu.part import Bench, Found
from bench.gpu.slice import NAMES
from seektune.kernels import (
    Chosen,
    Prefix,
    fp8_expert_linear,
    fp8_linear,
    index_topk,
    lowbit_expert_linear,
    lowbit_linear,
    sinkhorn,
    sparse_attention,
)
from seektune.model.config import CSA, SLIDING
from seektune.sequence import SequenceLayout

FP8 = torch.float8_e4m3fn
E8M0 = torch.float8_e8m0fnu


def kernel_times(bench: Bench, length: int) -> Found:
    """Attention, index choice and Sinkhorn."""
    tokens = bench.tokens(length)
    found: Found = {}
    for ratio, name in NAMES.items():
        if ratio == CSA:
            choose = partial(index_topk, *index_inputs(bench, tokens))
            found["index_topk"] = {"forward_ms": milliseconds(bench, choose)}
        found[f"sparse_attention, {name}"] = attention_times(bench, ratio, tokens)
    config = bench.config
    logits = torch.randn(tokens, config.hc_mult, config.hc_mult, device=bench.device, requires_grad=True)
    steps = partial(sinkhorn, logits, config.hc_sinkhorn_iters, config.hc_eps)
    found["sinkhorn"] = both_ways(bench, steps, [logits])
    return found


def attention_times(bench: Bench, ratio: int, tokens: int) -> Found:
    """Sparse attention as a layer of this kind calls it."""
    config = bench.config
    layout = SequenceLayout.single(1, tokens, bench.device)
    q = leaf(bench, 1, tokens, config.num_attention_heads, config.head_dim)
    keys = leaf(bench, 1, tokens, config.head_dim)
    entries = leaf(bench, 1, 0 if ratio == SLIDING else tokens // ratio, config.head_dim)
    sink = torch.zeros(config.num_attention_heads, device=bench.device, requires_grad=True)
    visible: Prefix | Chosen = seen_entries(bench, ratio, tokens)
    if ratio == CSA:
        visible = index_topk(*index_inputs(bench, tokens))
    leaves = [q, keys, sink, *([entries] if entries.numel() else [])]
    work = partial(sparse_attention, q, keys, entries, sink, layout.positions, config.sliding_window, visible)
    return both_ways(bench, work, leaves)


def seen_entries(bench: Bench, ratio: int, tokens: int) -> Prefix:
    """The entries that are complete before each query of one document."""
    positions = SequenceLayout.single(1, tokens, bench.device).positions
    count = positions * 0 if ratio == SLIDING else (positions + 1) // ratio
    return Prefix(torch.zeros_like(count), count)


def index_inputs(bench: Bench, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Prefix, int]:
    """Queries, keys and weights of the indexer."""
    config = bench.config
    q = torch.randn(1, tokens, config.index_n_heads, config.index_head_dim, device=bench.device, dtype=BF16)
    keys = torch.randn(1, tokens // CSA, config.index_head_dim, device=bench.device, dtype=BF16)
    weights = torch.randn(1, tokens, config.index_n_heads, device=bench.device, dtype=BF16)
    return q, keys, weights, seen_entries(bench, CSA, tokens), config.index_topk


def packed_times(bench: Bench, length: int) -> Found:
    """Products of bf16 and of FP8 inputs with frozen FP4 experts and FP8 maps: forward, and the input's gradient."""
    config = bench.config
    width = config.hidden_size
    inner = config.moe_intermediate_size
    experts = config.n_routed_experts
    pairs = bench.tokens(length) * config.num_experts_per_tok
    counts = [pairs // experts + (expert < pairs % experts) for expert in range(experts)]
    rows = leaf(bench, pairs, width)
    weights = torch.randint(-128, 128, (experts, inner, width // 2), device=bench.device, dtype=torch.int8)
    scales = torch.full((experts, inner, width // 32), 120, device=bench.device, dtype=torch.uint8).view(E8M0)
    packed = rows, weights.unbind(), scales.unbind(), counts
    x = leaf(bench, bench.tokens(length), width)
    codes = torch.randint(0, 64, (inner, width), device=bench.device, dtype=torch.uint8).view(FP8)
    blocks = torch.full((-(-inner // 128), -(-width // 128)), 120, device=bench.device, dtype=torch.uint8).view(E8M0)
    times = {
        "lowbit_expert_linear, FP4": both_ways(bench, partial(lowbit_expert_linear, *packed), [rows]),
        "fp8_expert_linear, FP4": both_ways(bench, partial(fp8_expert_linear, *packed), [rows]),
        "lowbit_linear, FP8": both_ways(bench, partial(lowbit_linear, x, codes, blocks), [x]),
        "fp8_linear, FP8": both_ways(bench, partial(fp8_linear, x, codes, blocks), [x]),
    }
    for name, each in times.items():
        multiplied = pairs if "expert" in name else len(x)
        rate = 2 * multiplied * width * inner / each["forward_ms"] / 1e9
        each["forward_share_of_matmul"] = bench.share(rate, bench.matmul)
    return times
