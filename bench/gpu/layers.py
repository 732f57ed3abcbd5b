"""Layers of V4-Flash at their released width: forward, backward, and their share of one large product's rate."""

from collections import Counter
from functools import partial

import torch

from bench.gpu.clock import forget_peak, launch_milliseconds, leaf, peak_gb, seconds
from bench.gpu.part import Bench, Found
from bench.gpu.slice import NAMES, layer
from seektune.model.block import Block
from seektune.model.config import DeepseekV4Config
from seektune.model.flops import layer_flops
from seektune.sequence import SequenceLayout


def layers(bench: Bench, packed: bool, length: int, rounding: str = "plain") -> Found:
    """All kinds of layers at one length, one after the other; `rounding` is their numerics."""
    found: Found = {}
    for ratio, name in NAMES.items():
        if bench.is_late:
            break
        block = layer(bench, ratio, packed, rounding)
        found[name] = layer_times(bench, block, ratio, packed, bench.tokens(length))
        del block
        if bench.device == "cuda":
            torch.cuda.empty_cache()
    return found


def layer_times(bench: Bench, block: Block, ratio: int, packed: bool, length: int) -> Found:
    """One forward, and one forward and backward pass."""
    config = bench.config
    streams = leaf(bench, 1, length, config.hc_mult, config.hidden_size)
    layout = SequenceLayout.single(1, length, bench.device)
    forward = partial(block, streams, None, layout, None)
    upstream = torch.ones_like(streams)

    def step() -> None:
        forward().backward(upstream)

    forget_peak(bench)
    ahead = seconds(bench, forward, 3)
    both = seconds(bench, step, 3)
    rate = sum(useful_flops(config, ratio, length, packed).values()) / both / 1e12
    return {
        "ms": round(both * 1e3, 2),
        "forward_ms": round(ahead * 1e3, 2),
        "backward_ms": round((both - ahead) * 1e3, 2),
        "launch_ms": launch_milliseconds(bench, step),
        "tflops": round(rate, 4),
        "share_of_matmul": bench.share(rate, bench.matmul),
        "peak_gb": peak_gb(bench),
    }


def useful_flops(config: DeepseekV4Config, ratio: int, length: int, packed: bool) -> Counter[str]:
    """Operations of forward and backward by part: frozen weights have no gradient, both factors of scores have one."""
    routed = 2.0 + 1 / (1 + config.num_experts_per_tok)
    frozen = {"indexer": 1.0, "attention": 3.0}
    trained = {"indexer": 1.0, "experts": routed}
    passes = frozen if packed else trained
    other = 2.0 if packed else 3.0
    return Counter(
        {part: flops * passes.get(part, other) for part, flops in layer_flops(config, ratio, length).items()}
    )


def profile(bench: Bench, packed: bool) -> Found:
    """The operations that take most of the time of a CSA layer's forward and backward, 4,096 tokens, in ms."""
    ratio = next(ratio for ratio, name in NAMES.items() if name == "CSA")
    config = bench.config
    block = layer(bench, ratio, packed)
    streams = leaf(bench, 1, bench.tokens(4096), config.hc_mult, config.hidden_size)
    layout = SequenceLayout.single(1, streams.shape[1], bench.device)
    block(streams, None, layout, None).backward(torch.ones_like(streams))
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as seen:
        block(streams, None, layout, None).backward(torch.ones_like(streams))
    events = seen.key_averages()
    spent = {
        event.key[:80]: (event.self_device_time_total if bench.device == "cuda" else event.self_cpu_time_total) / 1e3
        for event in events
    }
    most = sorted(spent, key=lambda name: -spent[name])[:20]
    return {name: round(spent[name], 3) for name in most}
