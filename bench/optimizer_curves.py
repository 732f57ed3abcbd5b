"""Losses of the tiny preset under AdamW and Muon: the same tokens, three seeds; drawn as docs/images/optimizers.png.

Rows are bytes of this project's guides, of which the last tenth is held out. Each optimizer has one learning rate,
that of `RATES` with the lower held-out loss of the first seed.
"""

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seektune.data.step_data import StepData
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.model import ParallelModel
from seektune.sequence import Batch
from seektune.train.config import LossConfig, ScheduleConfig
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import OPTIMIZERS
from seektune.train.schedule import learning_rate
from seektune.train.step import train_step

NAMES = ("adamw", "muon")
STEPS = 50
ROWS = 8
LENGTH = 32
SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2)
HERE = Path(__file__).parent
RESULT = Path(__file__).with_suffix(".json")
SCHEDULE = ScheduleConfig(name="wsd", warmup_steps=5)


def main() -> None:
    """Train, print, draw and write the result."""
    torch.set_num_threads(1)
    rows = byte_rows()
    curves = {name: best_runs(name, rows) for name in NAMES}
    tokens = STEPS * ROWS * LENGTH
    machine = {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    result = {"machine": machine, "tokens": tokens, "curves": curves}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(curves)
    print(f"written to {RESULT}")


def byte_rows() -> Tensor:
    """The guides as rows of bytes, `[R, LENGTH]`."""
    text = b"".join(file.read_bytes() for file in sorted((HERE.parent / "docs").glob("*.md")))
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return values[: len(values) // LENGTH * LENGTH].view(-1, LENGTH)


def best_runs(name: str, rows: Tensor) -> dict[str, Any]:
    """All seeds at the best rate."""
    tried = {rate: run(name, rate, SEEDS[0], rows) for rate in RATES}
    best = min(tried, key=lambda rate: tried[rate]["held_out"])
    runs = [tried[best], *(run(name, best, seed, rows) for seed in SEEDS[1:])]
    print(name, best, [each["held_out"] for each in runs], flush=True)
    return {"lr": best, "rates": {rate: each["held_out"] for rate, each in tried.items()}, "runs": runs}


def run(name: str, rate: float, seed: int, rows: Tensor) -> dict[str, Any]:
    """The losses of a run, and that of held-out rows at its end."""
    torch.manual_seed(seed)
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"))
    config = OPTIMIZERS[name].model_validate({"name": name, "lr": rate})
    optimizer = build_optimizer(model, config, seed)
    whole = ParallelModel.alone(model)
    losses = []
    for step, tokens in enumerate(batches(rows[: len(rows) * 9 // 10], seed), start=1):
        data = StepData.of([Batch(tokens, tokens, torch.ones_like(tokens))])
        lr = learning_rate(step, STEPS, rate, SCHEDULE)
        record = train_step(whole, optimizer, data, step, lr, LossConfig(mtp_weight=0.0), config.max_grad_norm)
        losses.append(round(record.loss, 4))
    held = rows[len(rows) * 9 // 10 :][:64]
    with torch.no_grad():
        found = model(held, labels=held, with_logits=False).loss
    return {"seed": seed, "losses": losses, "held_out": round(float(found), 4)}


def batches(rows: Tensor, seed: int) -> Iterator[Tensor]:
    """The same rows for every optimizer."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    yield from (rows[order[step * ROWS : (step + 1) * ROWS]] for step in range(STEPS))


def draw(curves: dict[str, Any]) -> None:
    """A line for each seed, a colour for each optimizer."""
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for number, (name, found) in enumerate(curves.items()):
        for each in found["runs"]:
            label = f"{name}, lr {found['lr']:g}" if each["seed"] == SEEDS[0] else None
            panel.plot(range(1, STEPS + 1), each["losses"], color=f"C{number}", alpha=0.7, linewidth=1.2, label=label)
    panel.set(xlabel="step", ylabel="training loss, nats per byte", title="tiny preset, three seeds, the same tokens")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    figure.savefig(HERE.parent / "docs" / "images" / "optimizers.png", dpi=110)


if __name__ == "__main__":
    main()
