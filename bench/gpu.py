"""Kernels and layers of V4-Flash at their released width on one GPU; writes the part of its card in gpu.json.

`python bench/gpu.py [--lengths 4096,16384] [--profile]`. Weights are random, in bf16, and the experts are frozen.
Times are medians of CUDA events after warming up; rates count useful arithmetic only (`model/flops.py`), beside
what one product of 8,192 squared and one copy reach in the same run.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from seektune.kernels import Chosen, Prefix, index_topk, sinkhorn, sparse_attention
from seektune.model.block import Block
from seektune.model.config import CSA, HCA, SLIDING, DeepseekV4Config
from seektune.model.flops import layer_flops
from seektune.model.numerics import numerics
from seektune.sequence import SequenceLayout

RESULT = Path(__file__).with_suffix(".json")
BF16 = torch.bfloat16
NAMES = {SLIDING: "sliding", CSA: "CSA", HCA: "HCA"}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="4096,16384")
    parser.add_argument("--profile", action="store_true", help="print where a layer's time goes")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    lengths = [int(word) for word in options.lengths.split(",")]
    config = DeepseekV4Config.preset("flash")
    rate, copied = ceilings()
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "matmul_tflops": round(rate, 1),
        "copy_gb_s": round(copied),
        "kernels": {},
        "layers": {},
    }
    for length in lengths:
        for name, times in kernels(config, length).items():
            found["kernels"][f"{name} {length}"] = times
            print(name, length, json.dumps(times), flush=True)
    for ratio in (SLIDING, CSA, HCA):
        block = layer(config, ratio)
        for length in lengths:
            found["layers"][f"{NAMES[ratio]} {length}"] = times = whole(block, config, ratio, length, rate)
            print(NAMES[ratio], length, json.dumps(times), flush=True)
        if options.profile:
            profile(block, lengths[0], config)
        del block
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    results[torch.cuda.get_device_name()] = found
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median of some runs after two."""
    spent = []
    for _ in range(repeats + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        spent.append(begin.elapsed_time(end) / 1e3)
    return median(spent[2:])


def ceilings() -> tuple[float, float]:
    """10^12 operations and 10^9 bytes (read and written) in a second."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=BF16).unbind()
    source = torch.randn(2**30, device="cuda", dtype=BF16)
    target = torch.empty_like(source)
    return 2 * 8192**3 / seconds(lambda: a @ b) / 1e12, 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9


def both_ways(forward: Callable[[], Tensor], leaves: list[Tensor]) -> dict[str, float]:
    """Milliseconds of forward, and of backward."""
    out = forward()
    upstream = torch.randn_like(out)

    def backward() -> None:
        torch.autograd.grad(out, leaves, upstream, retain_graph=True)

    return {"forward_ms": round(seconds(forward) * 1e3, 3), "backward_ms": round(seconds(backward) * 1e3, 3)}


def kernels(config: DeepseekV4Config, length: int) -> dict[str, dict[str, float]]:
    """Attention by kind of entries, the index choice and Sinkhorn."""
    torch.cuda.empty_cache()
    layout, heads, width = SequenceLayout.single(1, length, "cuda"), config.num_attention_heads, config.head_dim
    q, keys = (leaf(1, length, *shape) for shape in ((heads, width), (width,)))
    sink = torch.zeros(heads, device="cuda", requires_grad=True)
    found = {}
    for ratio in (SLIDING, CSA, HCA):
        count = layout.positions * 0 if ratio == SLIDING else (layout.positions + 1) // ratio
        entries = leaf(1, 0 if ratio == SLIDING else length // ratio, width)
        visible: Prefix | Chosen = Prefix(torch.zeros_like(count), count)
        if ratio == CSA:
            places = config.index_n_heads, config.index_head_dim
            asked = torch.randn(1, length, *places, device="cuda", dtype=BF16)
            known = torch.randn(1, length // CSA, config.index_head_dim, device="cuda", dtype=BF16)
            weights = torch.randn(1, length, config.index_n_heads, device="cuda", dtype=BF16)
            arguments = asked, known, weights, visible, config.index_topk
            assert isinstance(visible, Prefix)
            found["index_topk"] = {"forward_ms": round(seconds(lambda a=arguments: index_topk(*a)) * 1e3, 3)}
            visible = index_topk(*arguments)
        given = q, keys, entries, sink, layout.positions, config.sliding_window, visible
        leaves = [q, keys, sink, *([entries] if entries.numel() else [])]
        found[f"sparse_attention, {NAMES[ratio]}"] = both_ways(lambda g=given: sparse_attention(*g), leaves)
    logits = torch.randn(length, 4, 4, device="cuda", requires_grad=True)
    found["sinkhorn"] = both_ways(lambda: sinkhorn(logits, config.hc_sinkhorn_iters, config.hc_eps), [logits])
    return found


def leaf(*shape: int) -> Tensor:
    """Random bf16 that takes a gradient."""
    return torch.randn(shape, device="cuda", dtype=BF16, requires_grad=True)


def layer(config: DeepseekV4Config, ratio: int) -> Block:
    """A layer with random weights; its experts are frozen."""
    torch.cuda.empty_cache()
    number = next(n for n in range(config.num_hidden_layers) if config.ratio(n) == ratio)
    # past the hash-routed ones, which want token ids
    config = config.replace(num_hash_layers=0)
    block = Block(config, number, numerics("plain", config.index_head_dim), torch.device("cuda"), BF16)
    for name, tensor in block.state_dict(keep_vars=True).items():
        torch.nn.init.zeros_(tensor) if tensor.dim() == 1 else torch.nn.init.normal_(tensor, std=0.02)
        if "norm" in name:
            torch.nn.init.ones_(tensor)
    block.ffn.experts.requires_grad_(False)
    return block


def whole(block: Block, config: DeepseekV4Config, ratio: int, length: int, rate: float) -> dict[str, float]:
    """One forward and backward pass of a layer."""
    streams = leaf(1, length, config.hc_mult, config.hidden_size)
    layout = SequenceLayout.single(1, length, "cuda")
    upstream = torch.ones_like(streams)

    def step() -> None:
        block(streams, None, layout, None).backward(upstream)

    torch.cuda.reset_peak_memory_stats()
    spent = seconds(step, 3)
    times = {"indexer": 1.0, "experts": 2.0 + 1 / (1 + config.num_experts_per_tok)}
    work = sum(flops * times.get(part, 3) for part, flops in layer_flops(config, ratio, length).items())
    return {
        "ms": round(spent * 1e3, 2),
        "tflops": round(work / spent / 1e12, 1),
        "share_of_matmul": round(work / spent / 1e12 / rate, 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def profile(block: Block, length: int, config: DeepseekV4Config) -> None:
    """The operations that take most of the GPU's time."""
    streams, layout = leaf(1, length, config.hc_mult, config.hidden_size), SequenceLayout.single(1, length, "cuda")
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as seen:
        block(streams, None, layout, None).backward(torch.ones_like(streams))
        torch.cuda.synchronize()
    print(seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=60))


if __name__ == "__main__":
    main()
