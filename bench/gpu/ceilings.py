"""What this GPU reaches at best: one large product, a copy, an elementwise kernel; and the products of a layer alone.

The planner reads these: `seektune plan --measured FILE`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.clock import BF16, seconds
from bench.gpu.part import Bench, Found
from seektune.kernels import clamped_swiglu, expert_linear


def ceilings(bench: Bench) -> Found:
    """10^12 operations of a product of 8,192 squared, and 10^9 bytes, read and written, of copies, in a second."""
    side = 256 if bench.tiny else 8192
    count = 2**16 if bench.tiny else 2**30
    a, b = torch.randn(2, side, side, device=bench.device, dtype=BF16).unbind()
    source = torch.randn(count, device=bench.device, dtype=BF16)
    target = torch.empty_like(source)
    half = source.view(2, -1, 2048)
    # read in bf16, and half as many numbers written in fp32
    moved = 2 * source.nbytes
    return {
        "matmul_tflops": round(2 * side**3 / seconds(bench, lambda: a @ b) / 1e12, 4),
        "copy_gb_s": round(2 * source.nbytes / seconds(bench, lambda: target.copy_(source)) / 1e9, 3),
        "elementwise_gb_s": round(moved / seconds(bench, lambda: clamped_swiglu(half[0], half[1], 10.0)) / 1e9, 3),
        "host_to_device_gb_s": _from_host(bench, count // 8),
    }


def _from_host(bench: Bench, count: int) -> float | None:
    """10^9 bytes in a second from pinned memory; None on a CPU."""
    if bench.device != "cuda":
        return None
    source = torch.empty(count, dtype=BF16, pin_memory=True)
    target = torch.empty(count, dtype=BF16, device="cuda")
    return round(source.nbytes / seconds(bench, lambda: target.copy_(source, non_blocking=True)) / 1e9, 2)


def products(bench: Bench) -> Found:
    """The large products of one layer, forward, 4,096 tokens: maps of attention and the shared expert, and experts."""
    config = bench.config
    tokens = bench.tokens(4096)
    width = config.hidden_size
    inner = config.moe_intermediate_size
    heads = config.num_attention_heads * config.head_dim
    out = config.o_groups * config.o_lora_rank
    maps = [(width, config.q_lora_rank), (config.q_lora_rank, heads), (width, config.head_dim), (out, width)]
    maps += [(width, inner), (width, inner), (inner, width)]
    dense = [(random(bench, tokens, i), random(bench, o, i)) for i, o in maps]
    experts = config.n_routed_experts
    pairs = tokens * config.num_experts_per_tok
    counts = [pairs // experts + (expert < pairs % experts) for expert in range(experts)]
    rows = random(bench, pairs, width)
    stack = random(bench, experts, inner, width)
    work = {
        "dense": (1, lambda: [F.linear(x, w) for x, w in dense], sum(2 * tokens * i * o for i, o in maps)),
        "experts": (3, lambda: expert_linear(rows, stack, counts), 2 * pairs * width * inner),
    }
    spent = {name: times * seconds(bench, run) for name, (times, run, _) in work.items()}
    flops = {name: times * each for name, (times, _, each) in work.items()}
    rates = {name: flops[name] / spent[name] / 1e12 for name in work}
    rates["layer"] = sum(flops.values()) / sum(spent.values()) / 1e12
    return {
        name: {"tflops": round(rate, 4), "share_of_matmul": bench.share(rate, bench.matmul)}
        for name, rate in rates.items()
    }


def random(bench: Bench, *shape: int) -> Tensor:
    """Random bf16."""
    return torch.randn(shape, device=bench.device, dtype=BF16)
