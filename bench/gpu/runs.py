"""Whole runs of the tiny model on the device against the same on a CPU: training, resuming, LoRA, decoding, NCCL."""

import tempfile
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist

from bench.gpu.part import Bench, Found
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.train_state import read_tensors, tensor_names, write_train_state
from seektune.data.step_data import StepData
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.lora.build import add_adapters
from seektune.lora.config import LoraConfig
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.moe import MoE
from seektune.model.quantized import quantize_modules
from seektune.parallel.expert_dispatch import ExpertDispatch
from seektune.parallel.model import ParallelModel
from seektune.sequence import Batch
from seektune.train.config import LossConfig
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig
from seektune.train.optim.master import MasterOptimizer
from seektune.train.state_tensors import begin_as_saved, is_random_state, run_tensors
from seektune.train.step import train_step

ROWS = 2
CLOSE = 2e-3
"""Relative difference of a step's loss from that of a CPU."""
Training: TypeAlias = tuple[ParallelModel, MasterOptimizer]


def equal_or_raise(found: list[float], expected: list[float], bound: float) -> float:
    """The largest relative difference.

    Raises:
        AssertionError: it is above the bound.
    """
    worst = max(abs(x - y) / max(abs(y), 1e-9) for x, y in zip(found, expected, strict=True))
    assert worst <= bound, f"losses {found} differ from {expected} by {worst:.2e}, more than {bound:g}"
    return worst


def training(model: DeepseekV4ForCausalLM, device: str) -> Training:
    """A model and its optimizer on a device."""
    model = model.to(device)
    accumulate_in_fp32(model.parameters())
    alone = ParallelModel.alone(model)
    return alone, build_optimizer(model, AdamWConfig(lr=1e-3), seed=0)


def steps_of(bench: Bench) -> int:
    """Steps of a run."""
    return 2 if bench.tiny else 4


def length_of(bench: Bench) -> int:
    """Tokens of a row."""
    return 40 if bench.tiny else 160


def losses(bench: Bench, run: Training, steps: range, mtp: bool = True) -> list[float]:
    """Train these steps, each on a batch of its own."""
    model, optimizer = run
    weights = LossConfig() if mtp else LossConfig(mtp_weight=0.0)
    found = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(2, model.config.vocab_size, (ROWS, length_of(bench)), generator=generator)
        data = StepData.of([Batch(ids, ids, torch.ones_like(ids)).to(model.device)])
        found.append(train_step(model, optimizer, data, step, 1e-3, weights, 1.0).loss)
    return found


def tiny_model(dtype: torch.dtype = torch.float32) -> DeepseekV4ForCausalLM:
    """The tiny preset with the same initial weights at every call."""
    torch.manual_seed(0)
    return DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"), "cpu", dtype)


def train_run(bench: Bench) -> Found:
    """Losses equal those of a CPU; a run that is saved and resumed in the middle continues with the same bits."""
    steps = steps_of(bench)
    whole = losses(bench, training(tiny_model(), bench.device), range(steps))
    expected = losses(bench, training(tiny_model(), "cpu"), range(steps))
    first = training(tiny_model(), bench.device)
    half = losses(bench, first, range(steps // 2))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        write_train_state(folder, run_tensors(*first), {})
        resumed = training(tiny_model(), bench.device)
        begin_as_saved(*resumed, tensor_names(folder))
        read_tensors(folder, run_tensors(*resumed), optional=is_random_state)
    half += losses(bench, resumed, range(steps // 2, steps))
    bf16 = losses(bench, training(tiny_model(torch.bfloat16), bench.device), range(steps))
    return {
        "largest_difference_from_cpu": equal_or_raise(whole, expected, CLOSE),
        "largest_difference_when_resumed": equal_or_raise(half, whole, 1e-6),
        "largest_difference_of_bf16": equal_or_raise(bf16, expected, 2e-2),
        "losses": [round(each, 5) for each in whole],
    }


def lora_run(bench: Bench) -> Found:
    """Adapters on FP4 and FP8 weights train as on a CPU."""
    steps = range(steps_of(bench))
    here = losses(bench, training(adapted_model(), bench.device), steps, mtp=False)
    again = losses(bench, training(adapted_model(), bench.device), steps, mtp=False)
    expected = losses(bench, training(adapted_model(), "cpu"), steps, mtp=False)
    assert again == here, "the same run gives other losses"
    return {
        "largest_difference_from_cpu": equal_or_raise(here, expected, CLOSE),
        "losses": [round(each, 5) for each in again],
    }


def adapted_model() -> DeepseekV4ForCausalLM:
    """The tiny model with frozen FP4 and FP8 weights and adapters on attention and experts."""
    model = tiny_model()
    quantize_modules(model, FORMATS["released"].kind)
    add_adapters(model, LoraConfig(targets=("attn", "ffn.experts"), rank=4), mtp=False, seed=0)
    return model


def decode_run(bench: Bench) -> Found:
    """Greedy decoding with a cache gives the most likely tokens of the full forward pass."""
    model = tiny_model().to(bench.device)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, model.config.vocab_size, (3, 70), generator=generator).tolist()
    engine = DecodeEngine(model, [Request(ids, 3 if bench.tiny else 12, GREEDY) for ids in prompts], cpu_kernels=False)
    texts = [list(ids) for ids in prompts]
    while not engine.done:
        for token in engine.step():
            texts[token.request].append(token.id)
    ids = torch.tensor(texts, device=bench.device)
    with torch.no_grad():
        logits = model(ids).logits[:, 69:-1]
    chosen = logits.gather(-1, ids[:, 70:, None])[..., 0]
    # near ties may fall either way
    gap = float((logits.amax(-1) - chosen).max())
    assert gap < 1e-2, f"a decoded token is {gap:.3g} below the likeliest of the full forward pass"
    return {"decoded": ids[:, 70:].numel(), "largest_gap_of_logits": gap}


def dispatch_run(bench: Bench) -> Found:
    """Experts behind an all-to-all of one process (NCCL on a GPU) give the bits of those without one."""
    backend = "nccl" if bench.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        return {"backend": backend, "values": _compare_dispatch(bench)}
    finally:
        dist.destroy_process_group()


def _compare_dispatch(bench: Bench) -> int:
    model = tiny_model().to(bench.device)
    block = next(each for each in model.blocks() if not each.ffn.gate.state_dict().keys() & {"tid2eid"})
    results = []
    for spread in (False, True):
        moe: MoE = block.ffn
        if spread:
            assert dist.group.WORLD is not None
            moe.dispatch = ExpertDispatch(dist.group.WORLD)
        generator = torch.Generator().manual_seed(0)
        x = (
            torch.randn(1, length_of(bench), model.config.hidden_size, generator=generator)
            .to(bench.device)
            .requires_grad_()
        )
        out = moe(x, None, None, None)  # type: ignore[arg-type]
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, moe.experts.w1))))
    for ours, alone in zip(*results, strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-5, atol=1e-6)
    return sum(x.numel() for x in results[0])
