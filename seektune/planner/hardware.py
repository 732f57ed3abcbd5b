"""GPUs, links and clusters: rates and sizes for plans, with their sources in hardware.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from seektune.io.json_file import is_number
from seektune.parallel.config import MAX_PROCESSES
from seektune.recipe.document import FileKind, read_document, shorten
from seektune.recipe.validation import validate
from seektune.section import Section

GIGA = 10**9
LEAST_RATE = 1e-3
MOST_RATE = 1e9
"""Bounds of the numbers of a cluster file, in its units."""
LONGEST_NAME = 80
"""Characters of the name of a GPU."""
CLUSTER = FileKind("a cluster file", "keys and values such as gpu: h100-80gb", "docs/planning.md shows one")


@dataclass(frozen=True)
class Cluster:
    """GPUs of one type and their links; rates are per GPU and direction, in bytes or operations per second."""

    gpu: str
    """Name of the type."""
    gpus: int
    gpus_per_node: int
    memory: int
    """Bytes of a GPU."""
    flops: float
    """Peak rate of dense bf16 products."""
    memory_rate: float
    link: float
    """Within a node."""
    network: float
    """Between nodes."""
    assumed: tuple[tuple[str, float], ...] = ()
    """Values in place of those that hardware.json assumes, by name."""

    @property
    def factors(self) -> dict[str, float]:
        """Assumed values of quantities that only a measurement could give, by name."""
        return {**assumed(), **dict(self.assumed)}

    @property
    def nodes(self) -> int:
        """Number of nodes, the last of which may be partly used."""
        return -(-self.gpus // self.gpus_per_node)

    def between(self, processes: int, apart: int = 1) -> float:
        """The link rate of a process in a group of `processes` whose ranks differ by `apart`."""
        return self.link if processes * apart <= self.gpus_per_node else self.network


def _check_link(value: Any) -> Any:
    """A known link or a rate, before its type is looked at; the union of both would be told as two mistakes."""
    links = hardware_data()["links"]
    if isinstance(value, str) and value not in links:
        raise ValueError(f"{shorten(value)} is not a known link; known are {', '.join(links)}, or a number of GB/s")
    if not isinstance(value, str | None) and not (is_number(value) and LEAST_RATE <= value <= MOST_RATE):
        shown = shorten(str(value))
        raise ValueError(f"must be a known link, or a number of GB/s from {LEAST_RATE:g} to {MOST_RATE:g}, not {shown}")
    return value


Count = Annotated[int, Field(gt=0, le=MAX_PROCESSES)]
Rate = Annotated[float, Field(ge=LEAST_RATE, le=MOST_RATE)]
Link = Annotated[str | float | None, BeforeValidator(_check_link)]


class ClusterFile(Section):
    """A cluster described by a YAML file; defaults are those of the GPU's usual node."""

    gpu: str
    """A known type, such as h100-80gb, or a new name with all of the following."""
    gpus: Count
    """Total number of GPUs."""
    gpus_per_node: Count | None = None
    """GPUs connected by the fast link."""
    memory_gb: Rate | None = None
    """Usable memory of a GPU, in 10^9 bytes."""
    bf16_tflops: Rate | None = None
    """Peak rate of dense bf16 products."""
    memory_gb_s: Rate | None = None
    """Bandwidth of the GPU's memory."""
    link: Link = None
    """Within a node: a known link, such as nvlink4, or GB/s per GPU and direction."""
    network: Link = None
    """Between nodes: a known link, such as ndr400, hdr200 or ethernet100, or GB/s per GPU and direction."""
    assumed: dict[str, float] = Field(default_factory=dict)
    """Values in place of assumed ones, such as `matmul: 0.5` or `ep_overlap: 0.8`; every plan lists them."""


@cache
def hardware_data() -> dict[str, Any]:
    """The contents of hardware.json."""
    text = resources.files("seektune.planner").joinpath("hardware.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def assumed() -> dict[str, float]:
    """Assumed values of quantities that only a measurement could give."""
    return {name: each["value"] for name, each in hardware_data()["assumed"].items()}


def known_gpu(name: str, gpus: int) -> Cluster:
    """GPUs of a known type, in its usual nodes.

    Raises:
        ValueError: there is no such type, or too many GPUs.
    """
    if gpus > MAX_PROCESSES:
        raise ValueError(f"{gpus} GPUs are more than any plan has; at most {MAX_PROCESSES}")
    return _cluster(ClusterFile(gpu=name, gpus=gpus), "--gpu")


def read_cluster(path: str | Path) -> Cluster:
    """The cluster that a YAML file describes.

    Raises:
        ValueError: the file is not a valid `ClusterFile`.
        OSError: it cannot be read.
    """
    document = read_document(path, CLUSTER)
    return _cluster(validate(document, ClusterFile, CLUSTER), str(path))


def _cluster(file: ClusterFile, origin: str) -> Cluster:
    if not file.gpu.isprintable() or "[" in file.gpu or len(file.gpu) > LONGEST_NAME:
        raise ValueError(f"{origin}: gpu is longer than any name of a GPU, or holds characters that none has")
    defaults = hardware_data()["gpus"].get(file.gpu, {})
    values = {key: value for key, value in file.model_dump().items() if value is not None}
    needed = ("gpus_per_node", "memory_gb", "bf16_tflops", "memory_gb_s")
    rates = {
        "link": values.get("link", defaults.get("link_gb_s")),
        "network": values.get("network", defaults.get("network_gb_s")),
    }
    whole = {key: values.get(key, defaults.get(key)) for key in needed} | rates
    if missing := [key for key, value in whole.items() if value is None]:
        near = get_close_matches(file.gpu, hardware_data()["gpus"], n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? Known" if near else "known"
        raise ValueError(
            f"{origin}: {file.gpu} is not a known GPU; {hint} are {', '.join(hardware_data()['gpus'])}; another needs "
            f"{', '.join(missing)} in a cluster file"
        )
    check_assumed(file.assumed, origin)
    return Cluster(
        gpu=file.gpu,
        gpus=file.gpus,
        gpus_per_node=whole["gpus_per_node"],
        memory=round(whole["memory_gb"] * GIGA),
        flops=whole["bf16_tflops"] * 1e12,
        memory_rate=whole["memory_gb_s"] * GIGA,
        link=_rate(whole["link"]),
        network=_rate(whole["network"]),
        assumed=tuple(file.assumed.items()),
    )


def check_assumed(values: Mapping[str, float], origin: str) -> None:
    """Check values in place of assumed ones.

    Raises:
        ValueError: nothing of that name is assumed, or a value is out of its range.
    """
    known = hardware_data()["assumed"]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{origin}: assumed: {name} is not one of {', '.join(known)}")
        least = known[name]["least"]
        most = known[name]["most"]
        # also false for NaN
        if not least <= value <= most:
            raise ValueError(f"{origin}: assumed: {name} must be from {least:g} to {most:g}, not {value:g}")


def _rate(link: str | float) -> float:
    rate: float = hardware_data()["links"][link]["gb_s"] if isinstance(link, str) else link
    return rate * GIGA
