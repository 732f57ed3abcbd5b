"""How fast frozen FP4 and FP8 weights are dequantized to bf16, against copying in the same run.

Speeds are bytes written per second, on a weight of one of V4-Flash's experts and one far larger than the caches;
each is the best of rounds in which all take turns, by the time of the processor, of one thread, as others may be busy.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from seektune.kernels import dequantize, dequantize_fp4, dequantize_fp8

ROUNDS = 20
TARGET = 0.25
"""Share of the copy speed that each codec must reach."""
SHAPES = {"expert": (2048, 4096), "wq_b": (32768, 1024)}
RESULT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Measure, print and write the result."""
    torch.set_num_threads(1)
    result: dict[str, object] = {
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "unit": "GB of bf16 written per second of one core",
        "target": TARGET,
    }
    for name, shape in SHAPES.items():
        result[f"{name} {list(shape)}"] = measure(*shape)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {RESULT}")


def measure(rows: int, columns: int) -> dict[str, float]:
    """GB/s of copying and of both codecs, and their shares of the copying."""
    codes = torch.randint(0, 127, (rows, columns), dtype=torch.uint8)
    exponents = torch.randint(115, 125, (rows, columns // 32), dtype=torch.uint8)
    fp4 = codes[:, : columns // 2].contiguous().view(torch.int8), exponents.view(torch.float8_e8m0fnu)
    blocks = exponents[: rows // 128, : columns // 128].contiguous()
    fp8 = codes.view(torch.float8_e4m3fn), blocks.view(torch.float8_e8m0fnu)
    source = torch.randn(rows, columns).bfloat16()
    # all write into memory that is there already
    target = torch.empty_like(source)
    works: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "fp4": lambda: dequantize(*fp4, torch.bfloat16, target),
        "fp8": lambda: dequantize(*fp8, torch.bfloat16, target),
        "fp4 by definition": lambda: dequantize_fp4(*fp4).bfloat16(),
        "fp8 by definition": lambda: dequantize_fp8(*fp8).bfloat16(),
    }
    best = dict.fromkeys(works, float("inf"))
    for _ in range(ROUNDS):
        for name, work in works.items():
            begin = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - begin)
    found = {name: round(source.nbytes / seconds / 1e9, 2) for name, seconds in best.items()}
    found |= {f"{name} / copy": round(found[name] / found["copy"], 3) for name in ("fp4", "fp8")}
    print(f"[{rows}, {columns}]: " + ", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


if __name__ == "__main__":
    main()
