"""What rounding costs a trained model, and what quantization-aware training costs a step.

The tiny preset learns bytes of this project's guides, of which the last tenth is held out. A run is trained plainly and
then rounded, or trained with quantization in its last fifth, in which the learning rate falls; three seeds, the same
tokens. Held-out losses are those that serving would have: rounded weights, activations and keys. Seconds are CPU time.
"""

import json
import os
import platform
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import mean, median, stdev
from time import process_time
from typing import Any

import torch
from torch import Tensor

from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.stored import Stored, encode
from seektune.data.step_data import StepData
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.fake_quantized import fake_quantize_modules, rounded_parameters
from seektune.parallel.model import ParallelModel
from seektune.sequence import Batch
from seektune.train.config import LossConfig, ScheduleConfig
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig
from seektune.train.schedule import learning_rate
from seektune.train.step import train_step

STEPS = 250
LAST = 50
"""Steps at the end that are quantization-aware."""
ROWS = 8
LENGTH = 64
HELD_OUT = 128
"""Rows of which the loss is measured."""
SEEDS = (0, 1, 2)
FORMS = ("released", "fp8")
RATE = 3e-3
TIMED = 5
HERE = Path(__file__).parent
RESULT = Path(__file__).with_suffix(".json")
SCHEDULE = ScheduleConfig(name="wsd", warmup_steps=20, decay_share=0.2)


def main() -> None:
    """Train, print and write the result."""
    torch.set_num_threads(1)
    rows = byte_rows()
    runs = [compare(seed, rows) for seed in SEEDS]
    seconds = [cost("tiny", DeepseekV4Config.preset("tiny"), rows)]
    seconds.append(cost("model", DeepseekV4Config.from_pretrained(HERE / "model.json"), rows))
    machine = {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    result = {
        "machine": machine,
        "steps": STEPS,
        "quantized steps": LAST,
        "tokens": STEPS * ROWS * LENGTH,
        "losses": summary(runs),
        "runs": runs,
        "seconds of a step": seconds,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["losses"], indent=1))
    print(f"written to {RESULT}")


def byte_rows() -> Tensor:
    """The guides as rows of bytes, `[R, LENGTH]`."""
    text = b"".join(file.read_bytes() for file in sorted((HERE.parent / "docs").glob("*.md")))
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return values[: len(values) // LENGTH * LENGTH].view(-1, LENGTH)


def compare(seed: int, rows: Tensor) -> dict[str, Any]:
    """Held-out losses of a seed: unrounded, and for each format rounded after and in training."""
    torch.manual_seed(seed)
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"), numerics="released")
    optimizer = build_optimizer(model, AdamWConfig(lr=RATE), seed)
    train(model, optimizer, rows, seed, range(1, STEPS - LAST + 1))
    begun = deepcopy((model.state_dict(), optimizer.state_dict()))
    found: dict[str, Any] = {"seed": seed}
    train(model, optimizer, rows, seed, range(STEPS - LAST + 1, STEPS + 1))
    found["unrounded"] = held_out(model, rows)
    for form in FORMS:
        served = rounded(model, form)
        found[f"{form}, rounded after training"] = held_out(served, rows)
        encode_by_rule(served, form)
        found[f"{form}, rounded after training by the release's rule"] = held_out(served, rows)
    for form in FORMS:
        trained = rounded(model, form)
        moving = build_optimizer(trained, AdamWConfig(lr=RATE), seed)
        trained.load_state_dict(begun[0])
        moving.load_state_dict(deepcopy(begun[1]))
        train(trained, moving, rows, seed, range(STEPS - LAST + 1, STEPS + 1))
        found[f"{form}, trained with rounding"] = held_out(trained, rows)
    print(json.dumps(found), flush=True)
    return found


def rounded(model: DeepseekV4ForCausalLM, form: str) -> DeepseekV4ForCausalLM:
    """A copy that computes as serving does in that format."""
    copy = deepcopy(model)
    fake_quantize_modules(copy, form)
    return copy


@torch.no_grad()
def encode_by_rule(model: DeepseekV4ForCausalLM, form: str) -> None:
    """Replace the weights of a rounded model by their values after `convert`, whose scales hold the largest value."""
    for parameter in rounded_parameters(model):
        kind = FORMATS[form].experts if parameter.dim() == 3 else FORMATS[form].linears
        for matrix in parameter if parameter.dim() == 3 else [parameter]:
            matrix.copy_(encode(Stored("f32", matrix), matrix, kind).values())


def train(
    model: DeepseekV4ForCausalLM, optimizer: torch.optim.Optimizer, rows: Tensor, seed: int, steps: range
) -> None:
    """Take these steps of a run."""
    order = torch.randperm(len(rows) * 9 // 10, generator=torch.Generator().manual_seed(seed))
    whole = ParallelModel.alone(model)
    for step in steps:
        lr = learning_rate(step, STEPS, RATE, SCHEDULE)
        chosen = torch.arange((step - 1) * ROWS, step * ROWS) % len(order)
        train_step(whole, optimizer, data_of(rows[order[chosen]]), step, lr, LossConfig(mtp_weight=0.0), 1.0)


def data_of(tokens: Tensor) -> StepData:
    """One micro-batch of whole rows."""
    return StepData.of([Batch(tokens, tokens, torch.ones_like(tokens))])


@torch.no_grad()
def held_out(model: DeepseekV4ForCausalLM, rows: Tensor) -> float:
    """Nats per byte of the held-out rows."""
    held = rows[len(rows) * 9 // 10 :][:HELD_OUT]
    return round(float(model(held, labels=held, with_logits=False).loss), 4)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and of the differences to the unrounded model."""
    found = {}
    for name in runs[0].keys() - {"seed"}:
        lost = [each[name] - each["unrounded"] for each in runs]
        found[name] = {"loss": round(mean(each[name] for each in runs), 4), "lost": round(mean(lost), 4)}
        found[name]["deviation"] = round(stdev(lost), 4)
    return dict(sorted(found.items(), key=lambda item: item[1]["loss"]))


def cost(name: str, config: DeepseekV4Config, rows: Tensor) -> dict[str, Any]:
    """CPU seconds of a step of 1,024 tokens, the median of several in which all take turns."""
    steps: dict[str, Callable[[int], object]] = {}
    for form in ("none", *FORMS):
        torch.manual_seed(0)
        model = DeepseekV4ForCausalLM(config, numerics="released")
        if form != "none":
            fake_quantize_modules(model, form)
        optimizer = build_optimizer(model, AdamWConfig(lr=1e-4), 0)
        steps[form] = stepper(ParallelModel.alone(model), optimizer, data_of(rows[:16]))
    spent: dict[str, list[float]] = {form: [] for form in steps}
    for number in range(TIMED + 1):
        for form, step in steps.items():
            began = process_time()
            step(number + 1)
            spent[form] += [process_time() - began] * (number > 0)
    found = {form: round(median(each), 3) for form, each in spent.items()}
    print(name, found, flush=True)
    return {"model": name, **found}


def stepper(model: ParallelModel, optimizer: torch.optim.Optimizer, data: StepData) -> Callable[[int], object]:
    """A training step by its number."""
    return lambda number: train_step(model, optimizer, data, number, 1e-4, LossConfig(mtp_weight=0.0), 1.0)


if __name__ == "__main__":
    main()
