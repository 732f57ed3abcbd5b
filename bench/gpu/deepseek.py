"""DeepSeek's kernels beside ours at released shapes, where their packages are installed: errors and times."""

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from bench.gpu.clock import milliseconds
from bench.gpu.kernel_times import E8M0, FP8, index_inputs, seen_entries
from bench.gpu.part import Bench, Found
from bench.gpu.slice import NAMES
from bench.gpu.twins import checked
from seektune.kernels import Kernel, expert_linear, fp8_expert_linear, index_topk, sinkhorn, sparse_attention
from seektune.model.config import CSA
from seektune.sequence import SequenceLayout
from tests.gpu.agreement import BOUNDS, largest_error

BF16 = torch.bfloat16


def deepseek_kernels(bench: Bench) -> Found:
    """Errors against our kernels, in bf16's bound, and milliseconds of forward; what is not installed is said so.

    Raises:
        AssertionError: one differs.
    """
    found: Found = {}
    for name, operation, arguments in _cases(bench):
        module = import_module(f"seektune.kernels.deepseek.{operation.deepseek}")
        if find_spec(module.PACKAGE) is not None and module.supports(*arguments):
            theirs = partial(vars(module)[operation.reference.__name__], *arguments)
            found[name] = _compared(bench, theirs, partial(operation, *arguments))
    return checked(found) if found else {"installed": 0}


@torch.no_grad()
def _compared(bench: Bench, theirs: Any, ours: Any) -> Found:
    return {
        "error": largest_error([theirs()], [ours()]),
        "bound": BOUNDS[BF16],
        "theirs_ms": milliseconds(bench, theirs),
        "ours_ms": milliseconds(bench, ours),
    }


def _cases(bench: Bench) -> list[tuple[str, Kernel[Any, Any], tuple[Any, ...]]]:
    config = bench.config
    tokens = bench.tokens(4096)
    pairs = tokens * config.num_experts_per_tok
    experts = config.n_routed_experts
    counts = [pairs // experts + (expert < pairs % experts) for expert in range(experts)]
    random = partial(torch.randn, device=bench.device, dtype=BF16)
    weights = random(experts, config.moe_intermediate_size, config.hidden_size)
    codes = torch.randint(0, 64, weights.shape, device=bench.device, dtype=torch.uint8).view(FP8)
    blocks = [experts, *(-(-size // 128) for size in weights.shape[1:])]
    scales = torch.full(blocks, 120, device=bench.device, dtype=torch.uint8).view(E8M0)
    rows = random(pairs, config.hidden_size)
    streams = torch.randn(tokens, config.hc_mult, config.hc_mult, device=bench.device)
    return [
        *((f"sparse_attention, {name}", sparse_attention, _attention(bench, ratio)) for ratio, name in NAMES.items()),
        ("sinkhorn", sinkhorn, (streams, config.hc_sinkhorn_iters, config.hc_eps)),
        ("expert_linear", expert_linear, (rows, weights, counts)),
        ("fp8_expert_linear", fp8_expert_linear, (rows, codes.unbind(), scales.unbind(), counts)),
    ]


def _attention(bench: Bench, ratio: int) -> tuple[Any, ...]:
    config = bench.config
    tokens = bench.tokens(4096)
    random = partial(torch.randn, device=bench.device, dtype=BF16)
    layout = SequenceLayout.single(1, tokens, bench.device)
    visible = index_topk(*index_inputs(bench, tokens)) if ratio == CSA else seen_entries(bench, ratio, tokens)
    q = random(1, tokens, config.num_attention_heads, config.head_dim)
    keys = random(1, tokens, config.head_dim)
    entries = random(1, tokens // ratio if ratio else 0, config.head_dim)
    sink = torch.zeros(config.num_attention_heads, device=bench.device)
    return q, keys, entries, sink, layout.positions, config.sliding_window, visible
