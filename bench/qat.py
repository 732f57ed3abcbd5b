"""What rounding costs a trained model, and what quantization-aware training costs a step.

The tiny preset learns bytes of this project's guides, of which the last tenth is held out. A run is trained plainly and
then rounded, or trained with quantization in its last fifth, in which the learning rate falls; three seeds, the same
tokens. Then the rounded model is tuned on the project's code at a small rate, which is rounded again, or trained with
quantization. Held-out losses are those that serving would have: rounded weights, activations and keys. Seconds are CPU
time.
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

STEPS = 150
LAST = 30
"""Steps at the end that are quantization-aware."""
ROWS = 4
LENGTH = 64
HELD_OUT = 64
"""Rows of which the loss is measured."""
SEEDS = (0, 1, 2)
FORMS = ("released", "fp8")
RATE = 3e-3
TUNED = 30
"""Steps on the code."""
TUNING_RATE = 1e-4
TIMED = 3
HERE = Path(__file__).parent
RESULT = Path(__file__).with_suffix(".json")
SCHEDULE = ScheduleConfig(name="wsd", warmup_steps=20, decay_share=0.2)


def main() -> None:
    """Train, print and write the result, after each seed what there is."""
    torch.set_num_threads(1)
    guides = byte_rows("docs/*.md")
    code = byte_rows("seektune/**/*.py")
    seconds = [cost("tiny", DeepseekV4Config.preset("tiny"), guides)]
    seconds.append(cost("model", DeepseekV4Config.from_pretrained(HERE / "model.json"), guides))
    runs = []
    for seed in SEEDS:
        runs.append(compare(seed, guides, code))
        write(runs, seconds)
    print(f"written to {RESULT}")


def write(runs: list[dict[str, Any]], seconds: list[dict[str, Any]]) -> None:
    """The result of the seeds so far."""
    machine = {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    result = {
        "machine": machine,
        "steps": STEPS,
        "quantized steps": LAST,
        "tuning steps": TUNED,
        "tokens of a step": ROWS * LENGTH,
        "pretraining": summary([each["pretraining"] for each in runs], "unrounded"),
        "tuning": summary([each["tuning"] for each in runs], "unrounded"),
        "seconds of a step": seconds,
        "runs": runs,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def byte_rows(pattern: str) -> Tensor:
    """Files of the project as rows of bytes, `[R, LENGTH]`."""
    text = b"".join(file.read_bytes() for file in sorted(HERE.parent.glob(pattern)))
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return values[: len(values) // LENGTH * LENGTH].view(-1, LENGTH)


def compare(seed: int, guides: Tensor, code: Tensor) -> dict[str, Any]:
    """Held-out losses of a seed: unrounded, and for each format rounded after and in training."""
    torch.manual_seed(seed)
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"), numerics="released")
    optimizer = build_optimizer(model, AdamWConfig(lr=RATE), seed)
    last = range(STEPS - LAST + 1, STEPS + 1)
    train(model, optimizer, guides, seed, range(1, last.start))
    begun = deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, guides, seed, last)
    found = {"unrounded": held_out(model, guides)}
    for form in FORMS:
        served = rounded(model, form)
        found[f"{form}, rounded after training"] = held_out(served, guides)
        trained = rounded(model, form)
        moving = build_optimizer(trained, AdamWConfig(lr=RATE), seed)
        trained.load_state_dict(begun[0])
        moving.load_state_dict(deepcopy(begun[1]))
        train(trained, moving, guides, seed, last)
        found[f"{form}, trained with rounding"] = held_out(trained, guides)
    both = {"seed": seed, "pretraining": found, "tuning": tune(model, seed, code)}
    print(json.dumps(both), flush=True)
    return both


def tune(model: DeepseekV4ForCausalLM, seed: int, code: Tensor) -> dict[str, float]:
    """Held-out losses of a released model that is tuned on the code."""
    store(model)
    found = {"before tuning": held_out(rounded(model, "released"), code)}
    for name, tuned in (("unrounded", deepcopy(model)), ("trained with rounding", rounded(model, "released"))):
        moving = build_optimizer(tuned, AdamWConfig(lr=TUNING_RATE), seed)
        train(tuned, moving, code, seed, range(1, TUNED + 1), TUNING_RATE)
        found[name] = held_out(tuned, code)
        if name == "unrounded":
            found["rounded after tuning"] = held_out(rounded(tuned, "released"), code)
    return found


def rounded(model: DeepseekV4ForCausalLM, form: str) -> DeepseekV4ForCausalLM:
    """A copy that computes as serving does in that format."""
    copy = deepcopy(model)
    fake_quantize_modules(copy, form)
    return copy


@torch.no_grad()
def store(model: DeepseekV4ForCausalLM) -> None:
    """Replace weights by their values in the released format, as an export does."""
    for parameter in rounded_parameters(rounded_view(model)):
        kind = FORMATS["released"].experts if parameter.dim() == 3 else FORMATS["released"].linears
        for matrix in parameter if parameter.dim() == 3 else [parameter]:
            matrix.copy_(encode(Stored("f32", matrix), matrix, kind).values())


def rounded_view(model: DeepseekV4ForCausalLM) -> DeepseekV4ForCausalLM:
    """A model of the same parameters that computes with rounded ones."""
    view = DeepseekV4ForCausalLM(model.config, "meta", model.dtype, model.numerics)
    view.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    fake_quantize_modules(view, "released")
    return view


def train(
    model: DeepseekV4ForCausalLM,
    optimizer: torch.optim.Optimizer,
    rows: Tensor,
    seed: int,
    steps: range,
    rate: float | None = None,
) -> None:
    """Take these steps of a run, at the schedule's rate if none is given."""
    order = torch.randperm(len(rows) * 9 // 10, generator=torch.Generator().manual_seed(seed))
    whole = ParallelModel.alone(model)
    for step in steps:
        lr = learning_rate(step, STEPS, RATE, SCHEDULE) if rate is None else rate
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


def summary(runs: list[dict[str, float]], best: str) -> dict[str, Any]:
    """Means over the seeds, and of the differences to the best possible."""
    found = {}
    for name in runs[0]:
        lost = [each[name] - each[best] for each in runs]
        found[name] = {"loss": round(mean(each[name] for each in runs), 4), "lost": round(mean(lost), 4)}
        found[name] |= {"deviation": round(stdev(lost), 4)} if len(lost) > 1 else {}
    return found


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
