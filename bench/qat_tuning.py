"""Whether tuning through the rounding is better than tuning and rounding afterwards, in pairs of runs.

The tiny preset learns bytes of this project's guides for eight times as long as in `bench/qat.py`, and is rounded to
the released format. It is then tuned on the project's code in several orders of the rows, at several rates, plainly
and with quantization: both runs of a pair have the same weights, rows and rate. Losses are those that serving would
have, on code that was held out. With a file as argument, the trained model is kept there, and taken from there if it
exists.
"""

import json
import sys
from copy import deepcopy
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from bench import qat
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig

STEPS = 1200
TUNED = 30
ORDERS = 3
RATES = (1e-4, 3e-4, 1e-3)
HELD_OUT = 256
T_95 = {2: 12.706, 3: 4.303}
"""Student's t of 95 % intervals, by the number of pairs."""
RESULT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Train, tune, print and write the result, after each order what there is."""
    torch.set_num_threads(1)
    qat.STEPS = STEPS
    qat.HELD_OUT = HELD_OUT
    model = trained(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    qat.store(model)
    code = qat.byte_rows("seektune/**/*.py")
    before = qat.held_out(qat.rounded(model, "released"), code)
    runs = []
    for order in range(1, ORDERS + 1):
        runs += [pair(model, code, order, rate) for rate in RATES]
        write(before, runs)
    print(f"written to {RESULT}")


def trained(kept: Path | None) -> DeepseekV4ForCausalLM:
    """The model that is tuned, unrounded."""
    torch.manual_seed(0)
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"), numerics="released")
    if kept is not None and kept.is_file():
        model.load_state_dict(torch.load(kept))
        return model
    optimizer = build_optimizer(model, AdamWConfig(lr=qat.RATE), 0)
    qat.train(model, optimizer, qat.byte_rows("docs/*.md"), 0, range(1, STEPS + 1))
    if kept is not None:
        torch.save(model.state_dict(), kept)
    return model


def pair(model: DeepseekV4ForCausalLM, code: Tensor, order: int, rate: float) -> dict[str, float]:
    """Losses of a plain and a quantization-aware run on the same rows."""
    found: dict[str, float] = {"order": order, "rate": rate}
    for name, tuned in (("unrounded", deepcopy(model)), ("trained with rounding", qat.rounded(model, "released"))):
        optimizer = build_optimizer(tuned, AdamWConfig(lr=rate), order)
        qat.train(tuned, optimizer, code, order, range(1, TUNED + 1), rate)
        found[name] = qat.held_out(tuned, code)
        if name == "unrounded":
            found["rounded after tuning"] = qat.held_out(qat.rounded(tuned, "released"), code)
    print(json.dumps(found), flush=True)
    return found


def write(before: float, runs: list[dict[str, float]]) -> None:
    """The result so far."""
    rates = {f"{rate:g}": summary([run for run in runs if run["rate"] == rate]) for rate in RATES}
    result = {"steps": STEPS, "tuning steps": TUNED, "before tuning": before, "rates": rates, "runs": runs}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Means, and the mean of what training with rounding gains in each pair, with its 95 % interval."""
    names = ("unrounded", "rounded after tuning", "trained with rounding")
    found: dict[str, Any] = {name: round(mean(run[name] for run in runs), 4) for name in names}
    gains = [run["rounded after tuning"] - run["trained with rounding"] for run in runs]
    found["gain"] = round(mean(gains), 4)
    if len(gains) in T_95:
        half = T_95[len(gains)] * stdev(gains) / sqrt(len(gains))
        found["interval"] = [round(mean(gains) - half, 4), round(mean(gains) + half, 4)]
    return found


if __name__ == "__main__":
    main()
