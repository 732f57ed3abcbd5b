"""A training step against transformers: tokens per second, peak memory and their ratios, at several lengths.

Run with `make bench`; prints a table and writes results.json beside this file. Both train the same fp32 weights,
batch 1, forward + backward + AdamW. Times alternate the two in one process; peaks are of a process each.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from contenders import our_step, ours, recomputed, their_step, theirs, timed

from seektune.model.config import DeepseekV4Config

HERE = Path(__file__).parent
RESULT = HERE / "results.json"
CONFIG = HERE / "model.json"
ROUNDS = {512: 5, 2048: 3, 4096: 2}
"""Timed steps of each at a length, after one that is not; elsewhere one, of ours two."""
CHECKPOINTED = 8192
"""From this length on transformers recomputes its layers in backward, as it fails at 18 GB without."""
ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # large tensors go back to the system when they are freed; else peaks are those of a fragmented heap
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
}
"""Of the processes that measure, for both contenders."""
RECOMPUTED = 4096
"""From this length on ours does; below it there is memory enough."""


def main() -> None:
    """Measure in processes of their own, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--lengths", default="512,2048,4096,8192,16384,32768")
    parser.add_argument("--alone-from", type=int, default=16384, help="length from which only ours runs")
    parser.add_argument("--part", help="what a process of its own measures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.part is not None:
        kind, length = options.part.split(":")
        print(json.dumps(PARTS[kind](int(length), int(length) < options.alone_from)))
        return
    rows = []
    for length in map(int, options.lengths.split(",")):
        rows.append(row(length, options))
        print(line(rows[-1]), flush=True)
        write(rows, options.threads)


def row(length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one length."""
    found = {"length": length, **child("time", length, options)}
    found["ours"]["peak_gb"] = child("our_peak", length, options)["peak_gb"]
    if "theirs" in found:
        if length < CHECKPOINTED:  # there a step of theirs takes minutes; the peak of both is theirs
            found["theirs"]["peak_gb"] = child("their_peak", length, options)["peak_gb"]
        found["speed_ratio"] = round(found["ours"]["tokens_per_s"] / found["theirs"]["tokens_per_s"], 2)
        found["memory_ratio"] = round(found["theirs"]["peak_gb"] / found["ours"]["peak_gb"], 2)
    return found


def child(kind: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a fresh process."""
    command = [sys.executable, __file__, f"--part={kind}:{length}", f"--threads={options.threads}"]
    command.append(f"--alone-from={options.alone_from}")
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def time(length: int, compared: bool) -> dict[str, Any]:
    """Alternate the two; medians of wall and of CPU seconds."""
    config = DeepseekV4Config.from_pretrained(CONFIG)
    model, tokens = ours(config), text(config, length)
    steps = {}
    if compared:
        steps["theirs"] = their_step(theirs(model, length >= CHECKPOINTED))
    steps["ours"] = our_step(recomputed(model) if length >= RECOMPUTED else model)
    rounds = ROUNDS.get(length, 1)
    for name, step in steps.items():
        step(tokens if rounds > 1 or name == "ours" else tokens[:, :256])
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step, tokens))
    if rounds == 1:
        seconds["ours"].append(timed(steps["ours"], tokens))
    found = {name: speeds(length, pairs) for name, pairs in seconds.items()}
    if compared:
        found["theirs"]["peak_gb"] = peak()
    return found


def speeds(length: int, seconds: list[tuple[float, float]]) -> dict[str, float]:
    """Tokens per second of the median step."""
    wall, cpu = (statistics.median(times) for times in zip(*seconds, strict=True))
    return {
        "tokens_per_s": round(length / wall, 1),
        "tokens_per_cpu_s": round(length / cpu, 1),
        "seconds": round(wall, 3),
        "spread": round(max(s for s, _ in seconds) / min(s for s, _ in seconds), 2),
    }


def our_peak(length: int, compared: bool) -> dict[str, Any]:
    """Peak memory of a process that trains ours."""
    config = DeepseekV4Config.from_pretrained(CONFIG)
    model = ours(config)
    step = our_step(recomputed(model) if length >= RECOMPUTED else model)
    for tokens in (16, length):  # the first sets up the optimizer's state
        step(text(config, tokens))
    return {"peak_gb": peak()}


def their_peak(length: int, compared: bool) -> dict[str, Any]:
    """Peak memory of a process that trains theirs."""
    config = DeepseekV4Config.from_pretrained(CONFIG)
    step = their_step(theirs(ours(config), length >= CHECKPOINTED))
    for tokens in (16, length):
        step(text(config, tokens))
    return {"peak_gb": peak()}


def text(config: DeepseekV4Config, length: int) -> torch.Tensor:
    """Random ids."""
    return torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))


def peak() -> float:
    """Largest resident memory so far, 10^9 bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def line(found: dict[str, Any]) -> str:
    """One row of the table."""
    words = [f"{found['length']:>6} tokens"]
    for name in ("ours", "theirs"):
        if name in found:
            x = found[name]
            words.append(
                f"{name} {x['tokens_per_s']:>7} tokens/s ({x['tokens_per_cpu_s']} per CPU s), {x['peak_gb']:>6} GB"
            )
    if "speed_ratio" in found:
        words.append(f"{found['speed_ratio']} x faster, {found['memory_ratio']} x smaller")
    return " | ".join(words)


def write(rows: list[dict[str, Any]], threads: int) -> None:
    """The part `steps` of the results; other parts stay."""
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    kept = {row["length"]: row for row in results.get("steps", {}).get("rows", [])}
    kept |= {row["length"]: row for row in rows}
    load = round(os.getloadavg()[0], 1)
    results["steps"] = {"threads": threads, "load_at_end": load, "rows": [kept[length] for length in sorted(kept)]}
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


PARTS = {"time": time, "our_peak": our_peak, "their_peak": their_peak}

if __name__ == "__main__":
    main()
