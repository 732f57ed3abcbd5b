"""Adapters on the true-width slice of `bench/lora.py`, on one GPU: seconds and memory of a step; adds to gpu.json.

`python bench/gpu_lora.py [--folder PLACE] [--lengths 512,4096]`; 13 GB of disk. The very first step compiles kernels.
"""

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gpu import RESULT
from lora import TARGETS, made_slice

from seektune.data.step_data import StepData
from seektune.lora.build import add_adapters
from seektune.lora.config import LoraConfig
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.model import ParallelModel
from seektune.sequence import Batch
from seektune.train.config import LossConfig
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig
from seektune.train.step import train_step

LAYERS, RANK, STEPS = 3, 8, 3


def main() -> None:
    """Make the slice, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="where the slice is made; a temporary folder if not")
    parser.add_argument("--lengths", default="512,4096")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        found = measure(made_slice(Path(scratch) / "slice", LAYERS), [int(n) for n in options.lengths.split(",")])
    print(json.dumps(found, indent=1))
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    results.setdefault(torch.cuda.get_device_name(), {})["lora"] = found
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, lengths: list[int]) -> dict[str, Any]:
    """Steps of each length; the first of all compiles kernels."""
    model = DeepseekV4ForCausalLM.from_pretrained(folder, torch.bfloat16, quantized=True).cuda()
    found: dict[str, Any] = {"layers": LAYERS, "rank": RANK, "weights_gb": gigabytes(torch.cuda.memory_allocated())}
    add_adapters(model, LoraConfig(targets=TARGETS, rank=RANK), mtp=False, seed=0)
    model.cuda()
    accumulate_in_fp32(model.parameters())
    alone, loss = ParallelModel.alone(model), LossConfig(mtp_weight=0.0)
    optimizer = build_optimizer(model, AdamWConfig(lr=1e-3), seed=0)
    for length in lengths:
        ids = torch.randint(2, model.config.vocab_size, (1, length), device="cuda")
        batch, seconds = Batch(ids, ids, torch.ones_like(ids)), []
        torch.cuda.reset_peak_memory_stats()
        for step in range(1, STEPS + 1):
            torch.cuda.synchronize()
            began = perf_counter()
            train_step(alone, optimizer, StepData.of([batch]), step, 1e-3, loss, 1.0)
            torch.cuda.synchronize()
            seconds.append(round(perf_counter() - began, 3))
        peak = gigabytes(torch.cuda.max_memory_allocated())
        found[str(length)] = {"seconds": seconds, "tokens_per_s": round(length / seconds[-1]), "peak_gb": peak}
    return found


def gigabytes(size: int) -> float:
    """10^9 bytes."""
    return round(size / 1e9, 2)


if __name__ == "__main__":
    main()
