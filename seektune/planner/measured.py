"""Rates that `bench/gpu_all.py` measured on a GPU, in place of assumed ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from seektune.io.text import on_one_line, read_text
from seektune.planner.hardware import GIGA, Cluster, hardware_data

RATES = {
    "matmul": (("products", "layer", "tflops"), 1e12),
    "memory": (("ceilings", "elementwise_gb_s"), GIGA),
}
"""By the name of the assumption that each replaces: the part and keys of the result, and the unit."""


def with_measured(cluster: Cluster, path: Path) -> Cluster:
    """The cluster with the measured shares of its peak rates.

    Raises:
        ValueError: the file is not a result of the benchmark on such a GPU, or a rate is above its peak.
        OSError: it cannot be read.
    """
    try:
        result = json.loads(read_text(path))
    except (ValueError, RecursionError):
        result = None
    _check_device(result, cluster.gpu, path)
    peaks = {"matmul": cluster.flops, "memory": cluster.memory_rate}
    shares = {name: _rate(result, keys, path) * unit / peaks[name] for name, (keys, unit) in RATES.items()}
    for name, share in shares.items():
        if share > 1:
            raise ValueError(f"{path}: {name} is {share:.2f} times the peak of {cluster.gpu}; measure on that GPU")
    return replace(cluster, assumed=(*cluster.assumed, *shares.items()))


def _check_device(result: Any, gpu: str, path: Path) -> None:
    """Check that the result is of a GPU of this type, if it is a known one, and of the released sizes.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(result, dict):
        return
    device = str(result.get("device"))
    if device == "cpu" or result.get("tiny"):
        raise ValueError(
            f"{path} was measured on a CPU or at toy sizes; write it with python bench/gpu_all.py on a GPU"
        )
    # h200-141gb is NVIDIA H200
    name = gpu.rpartition("-")[0].replace("-", " ")
    if gpu in hardware_data()["gpus"] and name not in device.lower():
        raise ValueError(f"{path} was measured on {on_one_line(device)[:80]}, not on {gpu}; measure on that GPU")


def _rate(result: Any, keys: tuple[str, ...], path: Path) -> float:
    """A measured rate.

    Raises:
        ValueError: the result does not have it.
    """
    part, *inside = keys
    try:
        found = result["parts"][part]["found"]
        for key in inside:
            found = found[key]
        rate = float(found)
    except (KeyError, TypeError, ValueError, IndexError):
        rate = 0.0
    # also false for NaN
    if not 0 < rate < float("inf"):
        raise ValueError(f"{path} has no rate of the part {part}; write it with python bench/gpu_all.py on a GPU")
    return rate
