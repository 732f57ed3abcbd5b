"""One CSA and one HCA layer at the released width of V4-Flash, forward and backward in bf16; writes the part `layers`.

Run with `make bench-layer`. The 256 experts of a layer take 12.9 GB, and as much again for their gradients: more than
this machine has. They are frozen here, as in adapter training; everything else gets its gradient.
"""

import argparse
import json
import re
from pathlib import Path
from time import perf_counter, process_time

import torch
from parts import product_rate
from step import RESULT

from seektune.model.block import Block
from seektune.model.config import CSA, HCA, DeepseekV4Config
from seektune.model.flops import layer_flops
from seektune.model.numerics import numerics
from seektune.sequence import SequenceLayout


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", default="2048,8192")
    parser.add_argument("--experts", type=int, default=256, help="fewer need less memory, for the same arithmetic")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = DeepseekV4Config.preset("flash").replace(n_routed_experts=options.experts)
    bf16, rate = torch.bfloat16, product_rate(torch.bfloat16)
    for ratio in (CSA, HCA):
        layer = next(n for n in range(4, config.num_hidden_layers) if config.ratio(n) == ratio)
        block = Block(config, layer, numerics("plain", config.index_head_dim), None, bf16)
        for name, tensor in block.state_dict(keep_vars=True).items():
            torch.nn.init.zeros_(tensor) if tensor.dim() == 1 else torch.nn.init.normal_(tensor, std=0.02)
            if "norm" in name:
                torch.nn.init.ones_(tensor)
        block.ffn.experts.requires_grad_(False)
        for length in map(int, options.lengths.split(",")):
            found = measure(block, config, ratio, length) | {"matmul_gflops": round(rate, 1)}
            found["share_of_matmul"] = round(found["gflops"] / rate, 3)
            key = f"{'CSA' if ratio == CSA else 'HCA'} {length}, {options.experts} experts"
            print(key, json.dumps(found), flush=True)
            results = json.loads(RESULT.read_text(encoding="utf-8"))
            results.setdefault("layers", {})[key] = found
            RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        del block


OWN = Path("/proc/self")


def measure(block: Block, config: DeepseekV4Config, ratio: int, length: int) -> dict[str, float]:
    """One forward and backward pass."""
    streams = torch.randn(1, length, config.hc_mult, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    layout = SequenceLayout.single(1, length)
    OWN.joinpath("clear_refs").write_text("5")  # the highest mark so far, of another length or layer, is forgotten
    wall, cpu = perf_counter(), process_time()
    block(streams, None, layout, None).backward(torch.ones_like(streams))
    wall, cpu = perf_counter() - wall, process_time() - cpu
    work = sum(operations(config, ratio, length).values())
    return {
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "gflops": round(work / cpu / 1e9, 1),
        "peak_gb": peak(),
    }


def peak() -> float:
    """Largest resident memory since the mark was cleared, 10^9 bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", OWN.joinpath("status").read_text())
    assert found is not None
    return round(int(found[1]) * 1024 / 1e9, 3)


def operations(config: DeepseekV4Config, ratio: int, length: int) -> dict[str, int]:
    """Useful operations: frozen experts have no gradient of their matrices."""
    times = {"indexer": 1.0, "experts": 2.0 + 1 / (1 + config.num_experts_per_tok)}
    return {part: int(flops * times.get(part, 3)) for part, flops in layer_flops(config, ratio, length).items()}


if __name__ == "__main__":
    main()
