"""Where a step's time goes at 2,048 tokens, and its share of the rate that a large matrix product reaches here.

Run with `make bench`; writes the part `parts` of results.json. Rates count useful arithmetic only (`model/flops.py`).
"""

import argparse
import json
from pathlib import Path
from time import process_time
from typing import Any

import torch
from clock import Clock, clocked
from contenders import LR, ours
from step import RESULT, text

from seektune.model.config import DeepseekV4Config
from seektune.model.flops import training_flops
from seektune.train.optim.adamw import AdamW

HERE = Path(__file__).parent
CASES = (("model", torch.float32), ("wide", torch.float32), ("wide", torch.bfloat16))
LENGTH, STEPS, SIZE = 2048, 3, 2048
COUNTED = {"attention": ("attention", "projections"), "head and loss": ("head",)}
"""Parts of the counter that a part of the clock stands for, where the names differ."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    for name, dtype in CASES:
        found = measure(name, dtype)
        key = f"{name} {str(dtype).removeprefix('torch.')}"
        print(key, json.dumps(found), flush=True)
        results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        results.setdefault("parts", {})[key] = found
        RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Rates in 10^9 operations per CPU second; the fastest of some steps, after one."""
    config = DeepseekV4Config.from_pretrained(HERE / f"{name}.json")
    model, tokens = ours(config, dtype), text(config, LENGTH)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    clocks, rates = [], []
    for _ in range(STEPS):
        clock = Clock()
        with clocked(model, clock):
            loss = model(tokens, labels=tokens, with_logits=False).loss
            clock.turn("head and loss")
            loss.backward()
            clock.turn("optimizer")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.turn("head and loss")
        clocks.append(clock)
        rates.append(product_rate(dtype))
    best = min(clocks[1:], key=lambda clock: sum(clock.seconds.values()))
    return summary(best, max(rates), training_flops(config, LENGTH))


def product_rate(dtype: torch.dtype) -> float:
    """Of one large product, in the same process."""
    a, b = torch.randn(2, SIZE, SIZE, dtype=dtype).unbind()
    began = process_time()
    a @ b
    return 2 * SIZE**3 / (process_time() - began) / 1e9


def summary(clock: Clock, peak: float, flops: dict[str, int]) -> dict[str, Any]:
    """Shares of time and rates by part."""
    total = sum(clock.seconds.values())
    parts = {}
    for part, seconds in clock.seconds.most_common():
        work = sum(flops.get(counted, 0) for counted in COUNTED.get(part, (part,)))
        parts[part] = {"share": round(seconds / total, 3), "gflops": round(work / seconds / 1e9, 1)}
    rate = sum(flops.values()) / total / 1e9
    return {
        "cpu_seconds": round(total, 2),
        "gflops": round(rate, 1),
        "matmul_gflops": round(peak, 1),
        "share_of_matmul": round(rate / peak, 3),
        "parts": parts,
    }


if __name__ == "__main__":
    main()
