"""Adapters on three layers of V4-Flash at released width, in released bytes: speed, memory, and the plan."""

from time import perf_counter

import torch

from bench.gpu.clock import forget_peak, gigabytes, peak_gb
from bench.gpu.part import Bench, Found
from bench.gpu.planned import planned_bytes
from bench.gpu.slice import packed_slice
from seektune.data.step_data import StepData
from seektune.lora.build import add_adapters
from seektune.lora.config import LoraConfig
from seektune.parallel.model import ParallelModel
from seektune.sequence import Batch
from seektune.train.config import LossConfig
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig
from seektune.train.step import train_step

RANK, STEPS = 8, 4
TARGETS = ("attn", "ffn.experts")


def lora_slice(bench: Bench) -> Found:
    """Steps of 4,096 tokens; the first compiles kernels."""
    model = packed_slice(bench)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    add_adapters(model, LoraConfig(targets=TARGETS, rank=RANK), mtp=False, seed=0)
    model.to(bench.device)
    accumulate_in_fp32(model.parameters())
    alone = ParallelModel.alone(model)
    optimizer = build_optimizer(model, AdamWConfig(lr=1e-3), seed=0)
    length = bench.tokens(4096)
    ids = torch.randint(2, model.config.vocab_size, (1, length), device=bench.device)
    data = StepData.of([Batch(ids, ids, torch.ones_like(ids))])
    seconds = []
    forget_peak(bench)
    for step in range(1, STEPS + 1):
        begin = perf_counter()
        train_step(alone, optimizer, data, step, 1e-3, LossConfig(mtp_weight=0.0), 1.0)
        if bench.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(round(perf_counter() - begin, 4))
    low, high = planned_bytes(model, RANK, length)
    return {
        "layers": model.config.num_hidden_layers,
        "rank": RANK,
        "tokens": length,
        "weights_gb": gigabytes(weights),
        "seconds": seconds,
        "tokens_per_s": round(length / min(seconds[1:]), 1),
        "peak_gb": peak_gb(bench),
        "planned_gb": [gigabytes(low), gigabytes(high)],
    }
