"""Rates that `bench/gpu_all.py` measured on a GPU, in place of assumed ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from seektune.io.json_file import is_number, read_json
from seektune.io.text import on_one_line
from seektune.planner.hardware import GIGA, Cluster, check_assumed, hardware_data

RATES = {
    "matmul": (("products", "layer", "tflops"), 1e12),
    "memory": (("ceilings", "elementwise_gb_s"), GIGA),
}
"""By the name of the assumption that each replaces: the part and keys of the result, and the unit."""

WRITTEN_BY = "write it with python bench/gpu_all.py on a GPU"


def with_measured(cluster: Cluster, path: Path) -> Cluster:
    """The cluster with the measured shares of its peak rates.

    Raises:
        ValueError: there is no such file, it is not a result of the benchmark on such a GPU, or a rate is above its
            peak or next to nothing.
        OSError: it cannot be read.
    """
    result = read_json(path)
    _check_device(result, cluster.gpu, path)
    peaks = {"matmul": cluster.flops, "memory": cluster.memory_rate}
    shares = {name: _rate(result, keys, path) * unit / peaks[name] for name, (keys, unit) in RATES.items()}
    for name, share in shares.items():
        if share > 1:
            raise ValueError(f"{path}: {name} is {share:.2f} times the peak of {cluster.gpu}; measure on that GPU")
    check_assumed(shares, str(path))
    return replace(cluster, assumed=(*cluster.assumed, *shares.items()))


def _check_device(result: dict[str, Any], gpu: str, path: Path) -> None:
    """Check that the result is of a GPU of this type, if it is a known one, and of the released sizes.

    Raises:
        ValueError: it is not.
    """
    device = result.get("device")
    if not isinstance(device, str):
        raise ValueError(f"{path} does not name the device; {WRITTEN_BY}")
    if device == "cpu" or result.get("tiny"):
        raise ValueError(f"{path} was measured on a CPU or at toy sizes; {WRITTEN_BY}")
    # h200-141gb is NVIDIA H200
    name = gpu.rpartition("-")[0].replace("-", " ")
    if gpu in hardware_data()["gpus"] and name not in device.lower():
        raise ValueError(f"{path} was measured on {on_one_line(device)[:80]}, not on {gpu}; measure on that GPU")


def _rate(result: dict[str, Any], keys: tuple[str, ...], path: Path) -> float:
    """A measured rate.

    Raises:
        ValueError: the result does not have it.
    """
    part, *inside = keys
    found: Any = result
    for key in ("parts", part, "found", *inside):
        found = found.get(key) if isinstance(found, dict) else None
    if not is_number(found) or found <= 0:
        raise ValueError(f"{path} has no rate of the part {part}; {WRITTEN_BY}")
    return float(found)
