"""What the head costs, forward and backward: cross-entropy as an objective, against the kernel called by itself.

`kernel` is the fused cross-entropy on the taught tokens, `objective` the same through `CrossEntropy`, `weights` with a
column of weights, and `log-probabilities` the way of every other objective, which recomputes logits in backward: four
products with the head's weight instead of three. Seconds are CPU time, the best of rounds in which all take turns, as
others may be busy; memory is that of live tensors beyond the inputs.
"""

import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from live import Live
from torch import Tensor

from seektune.kernels import linear_cross_entropy
from seektune.model.config import DeepseekV4Config
from seektune.model.head import Taught
from seektune.model.objective import CROSS_ENTROPY, LogprobObjective
from seektune.sequence import WEIGHTS, SequenceLayout

ROUNDS = 6
LENGTHS = (512, 2048)
HERE = Path(__file__).parent
CONFIGS = ("model", "wide")
RESULT = Path(__file__).with_suffix(".json")
Work = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Measure, print and write the result."""
    torch.set_num_threads(1)
    cases = []
    for name in CONFIGS:
        config = DeepseekV4Config.from_pretrained(HERE / f"{name}.json")
        for dtype in (torch.float32, torch.bfloat16):
            for length in LENGTHS:
                cases.append(case(config.hidden_size, config.vocab_size, length, dtype))
                print(json.dumps(cases[-1]), flush=True)
    machine = {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    ratios = {way: ratios_of(cases, way) for way in ("objective", "weights", "log-probabilities")}
    result = {"machine": machine, "ratios to the kernel": ratios, "cases": cases}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(ratios), f"written to {RESULT}", sep="\n")


def ratios_of(cases: list[dict[str, object]], way: str) -> dict[str, float]:
    """Of seconds the median of all cases, of memory the largest."""
    seconds = statistics.median(case[way]["seconds"] / case["kernel"]["seconds"] for case in cases)
    peak = max(case[way]["peak_mb"] / case["kernel"]["peak_mb"] for case in cases)
    return {"seconds": round(seconds, 3), "peak": round(peak, 3)}


def case(width: int, vocabulary: int, length: int, dtype: torch.dtype) -> dict[str, object]:
    """Seconds and bytes of each way at one size."""
    torch.manual_seed(0)
    hidden = torch.randn(1, length, width, dtype=dtype, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * width**-0.5).to(dtype).requires_grad_()
    seconds: dict[str, float] = {}
    peaks = {}
    works = ways(length, vocabulary)
    for _ in range(ROUNDS):
        for name, work in works.items():
            seconds[name] = min(seconds.get(name, float("inf")), timed(work, hidden, weight))
    for name, work in works.items():
        with Live([hidden, weight]) as live:
            work(hidden, weight).backward()
        peaks[name] = round(live.peak / 1e6, 2)
        hidden.grad = weight.grad = None
    found = {name: {"seconds": round(seconds[name], 4), "peak_mb": peaks[name]} for name in works}
    size = {"width": width, "vocabulary": vocabulary, "tokens": length, "dtype": str(dtype).removeprefix("torch.")}
    return size | found


def ways(length: int, vocabulary: int) -> dict[str, Work]:
    """The ways to the loss of a row of one document."""
    layout = SequenceLayout.single(1, length)
    labels = torch.randint(vocabulary, (1, length))
    plain = Taught(labels, length - 1)
    weighted = Taught(labels, length - 1, {WEIGHTS: torch.rand(1, length)})

    def kernel(hidden: Tensor, weight: Tensor) -> Tensor:
        hidden_ND, targets_N = layout.taught(hidden, layout.targets(labels, steps=1))
        return linear_cross_entropy(hidden_ND, weight, targets_N, None) / (length - 1)

    def through(of_hidden: Callable[..., object], taught: Taught) -> Work:
        return lambda hidden, weight: of_hidden(hidden, layout, taught, taught.divisor, weight).loss

    return {
        "kernel": kernel,
        "objective": through(CROSS_ENTROPY.of_hidden, plain),
        "weights": through(CROSS_ENTROPY.of_hidden, weighted),
        "log-probabilities": through(lambda *rest: LogprobObjective.of_hidden(CROSS_ENTROPY, *rest), plain),
    }


def timed(work: Work, hidden: Tensor, weight: Tensor) -> float:
    """CPU seconds of forward and backward."""
    began = process_time()
    work(hidden, weight).backward()
    took = process_time() - began
    hidden.grad = weight.grad = None
    return took


if __name__ == "__main__":
    main()
