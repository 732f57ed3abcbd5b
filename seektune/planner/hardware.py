"""GPUs, links and clusters: rates and sizes that plans are made from, with their sources in hardware.json."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from seektune.section import Section

GIGA = 10**9
MOST_GPUS = 1_000_000
"""Beyond that a number is a slip of the hand, and finding its divisors would take forever."""


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind and what joins them; rates are those of one GPU, one direction, bytes or operations a second."""

    gpu: str
    """Name of the kind."""
    gpus: int
    gpus_per_node: int
    memory: int
    """Bytes of a GPU."""
    flops: float
    """Peak rate of bf16 products."""
    memory_rate: float
    link: float
    """Within a node."""
    network: float
    """Between nodes."""

    @property
    def nodes(self) -> int:
        """Machines, the last of which may be partly used."""
        return -(-self.gpus // self.gpus_per_node)

    def between(self, processes: int, apart: int = 1) -> float:
        """The rate at which a process reaches the others of a group whose ranks are `apart` from each other."""
        return self.link if processes * apart <= self.gpus_per_node else self.network


Count = Annotated[int, Field(gt=0, le=MOST_GPUS)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ClusterFile(Section):
    """A cluster as a YAML file says it; what is left out is the GPU's usual."""

    gpu: str
    """A known kind, such as h100-80gb, or a new name with all rates given below."""
    gpus: Count
    """GPUs in all."""
    gpus_per_node: Count | None = None
    """GPUs that the fast link joins."""
    memory_gb: Rate | None = None
    """10^9 bytes of a GPU that programs may use."""
    bf16_tflops: Rate | None = None
    """Peak rate of dense bf16 products."""
    memory_gb_s: Rate | None = None
    """Rate of the GPU's memory."""
    link: str | Rate | None = None
    """Within a node: a known link, such as nvlink4, or GB/s of one GPU in one direction."""
    network: str | Rate | None = None
    """Between nodes, the same way: ndr400, hdr200, ethernet100, or GB/s for each GPU."""


@cache
def facts() -> dict[str, Any]:
    """All of hardware.json."""
    text = resources.files("seektune.planner").joinpath("hardware.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def assumed() -> dict[str, float]:
    """Numbers that stand for what only a measurement could tell."""
    return {name: each["value"] for name, each in facts()["assumed"].items()}


def known_gpu(name: str, gpus: int) -> Cluster:
    """So many GPUs of a known kind, in its usual nodes.

    Raises:
        ValueError: no such kind, of which the sentence offers the nearest, or too many.
    """
    return _cluster(_read({"gpu": name, "gpus": gpus}, "--gpu"), "--gpu")


def read_cluster(path: str | Path) -> Cluster:
    """The cluster that a YAML file describes.

    Raises:
        ValueError: the file is not as `ClusterFile` says.
        OSError: it cannot be read.
    """
    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return _cluster(_read(said, str(path)), str(path))


def _read(said: object, origin: str) -> ClusterFile:
    try:
        return ClusterFile.model_validate(said)
    except ValidationError as error:
        key, *_ = (*(problem := error.errors()[0])["loc"], "")
        sentence = problem["msg"]
        if not key:
            key = "a cluster"
            sentence = "must be keys and values, such as gpu: h100-80gb"
        elif key in ("link", "network"):
            sentence = f"must be a known link or a number of GB/s, not {problem['input']!r}"
        raise ValueError(f"{origin}: {key}: {sentence}") from None


def _cluster(said: ClusterFile, origin: str) -> Cluster:
    usual = facts()["gpus"].get(said.gpu, {})
    values = {key: value for key, value in said.model_dump().items() if value is not None}
    needed = ("gpus_per_node", "memory_gb", "bf16_tflops", "memory_gb_s")
    rates = {
        "link": values.get("link", usual.get("link_gb_s")),
        "network": values.get("network", usual.get("network_gb_s")),
    }
    whole = {key: values.get(key, usual.get(key)) for key in needed} | rates
    if missing := [key for key, value in whole.items() if value is None]:
        near = get_close_matches(said.gpu, facts()["gpus"], n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? Known" if near else "known"
        raise ValueError(
            f"{origin}: {said.gpu} is no known GPU; {hint} are {', '.join(facts()['gpus'])}; another needs "
            f"{', '.join(missing)} in a cluster file"
        )
    return Cluster(
        gpu=said.gpu,
        gpus=said.gpus,
        gpus_per_node=whole["gpus_per_node"],
        memory=round(whole["memory_gb"] * GIGA),
        flops=whole["bf16_tflops"] * 1e12,
        memory_rate=whole["memory_gb_s"] * GIGA,
        link=_rate(whole["link"], origin),
        network=_rate(whole["network"], origin),
    )


def _rate(said: str | float, origin: str) -> float:
    if not isinstance(said, str):
        return said * GIGA
    links = facts()["links"]
    if said not in links:
        raise ValueError(f"{origin}: {said} is no known link; known are {', '.join(links)}, or a number of GB/s")
    rate: float = links[said]["gb_s"]
    return rate * GIGA
