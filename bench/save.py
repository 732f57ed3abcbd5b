"""How long training waits for a checkpoint: a save beside the training against one that it waits for.

Run with `make bench-checkpoint`; writes bench/save.json.
"""

import json
import tempfile
from pathlib import Path
from time import perf_counter

import torch

from seektune.train.checkpoints import Checkpoints, Saved
from seektune.train.config import CheckpointConfig

TENSORS, SIZE = 40, 8 * 2**20
"""Tensors of 8 Mi fp32 values: 1.3 GB together."""
ROUNDS = 3


def measure(asynchronous: bool, tensors: dict[str, torch.Tensor], folder: Path) -> list[Saved]:
    """Saves that each begin when the one before is complete; the first one, which also allocates, is left out."""
    saved: list[Saved] = []
    checkpoints = Checkpoints(folder, CheckpointConfig(asynchronous=asynchronous, keep_last=1), saved.append)
    for step in range(ROUNDS + 1):
        checkpoints.save(step, tensors, {"step": step})
        checkpoints.wait()
    return saved[1:]


def main() -> None:
    """Measure, print and write."""
    tensors = {f"model.{index}": torch.randn(SIZE) for index in range(TENSORS)}
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        began = perf_counter()
        waited = measure(False, tensors, Path(scratch) / "waited")
        beside = measure(True, tensors, Path(scratch) / "beside")
        total = perf_counter() - began
    sync = sorted(save.blocked for save in waited)[ROUNDS // 2]
    blocked = sorted(save.blocked for save in beside)[ROUNDS // 2]
    found = {
        "gigabytes": round(waited[0].size / 1e9, 3),
        "synchronous_s": round(sync, 3),
        "asynchronous_blocked_s": round(blocked, 3),
        "asynchronous_complete_s": round(sorted(save.seconds for save in beside)[ROUNDS // 2], 3),
        "blocked_share": round(blocked / sync, 4),
        "threads": torch.get_num_threads(),
    }
    (Path(__file__).parent / "save.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1), f"\nmeasured in {total:.0f} s")


if __name__ == "__main__":
    main()
