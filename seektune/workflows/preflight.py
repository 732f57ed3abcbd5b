"""Checks of a job's layout and memory before it starts, with the planner, on this machine's GPUs or a cluster's."""

import re
from dataclasses import replace

import psutil
import torch

from seektune.io.console import say
from seektune.model.config import DeepseekV4Config
from seektune.planner.hardware import Cluster, hardware_data, known_gpu
from seektune.recipe.recipe import Recipe
from seektune.workflows.plan import best_layout, refuse_misfit, words_of

CPU_RATES = (1e11, 2e10, 5e9, 1e9)
"""Operations, memory, link and network of a CPU process: only their ratios matter when layouts are compared."""


def cluster_here(processes: int, nodes: int) -> Cluster:
    """A cluster of `nodes` nodes like this one, with `processes` each; without GPUs they share the host's memory.

    A GPU of unknown name is treated as an H100 with this GPU's memory.
    """
    if not torch.cuda.is_available():
        memory = psutil.virtual_memory().total // processes
        return Cluster("cpu", processes * nodes, processes, memory, *CPU_RATES)
    device = torch.cuda.get_device_properties(0)
    usual = known_gpu(_kind(device.name), processes * nodes)
    return replace(usual, gpu=device.name, gpus_per_node=max(processes, 1), memory=device.total_memory)


def choose_layout(recipe: Recipe, cluster: Cluster) -> list[str]:
    """Overrides that set the fastest layout that fits, which is also printed.

    Raises:
        ValueError: the architecture is not known without the network, or no layout fits.
    """
    if recipe.model.architecture() is None:
        raise ValueError(
            f"parallel: auto needs the architecture of {recipe.model.weights}; add --model.preset=flash or pro"
        )
    best = best_layout(recipe, cluster)
    given, *words = words_of(recipe, best)
    total = best.memory.upper["total"] / 1e9
    say(f"parallel: auto takes {' '.join(words)} (up to {total:.1f} of {cluster.memory / 1e9:.1f} GB each)")
    return [given, *words]


def check_memory(recipe: Recipe, config: DeepseekV4Config | None, processes: int, nodes: int) -> None:
    """Stop a job that cannot fit these devices; not checked with CPU offload or an unknown architecture (None).

    Raises:
        ValueError: it cannot fit; the message names the nearest layout that does.
    """
    if config is not None and not recipe.parallel.cpu_offload:
        refuse_misfit(recipe, config, cluster_here(processes, nodes))


def _kind(name: str) -> str:
    """The planner's name of a device, from torch's."""
    for kind, each in hardware_data()["gpus"].items():
        model = kind.split("-")[0] if not kind.startswith("rtx") else "RTX PRO 6000"
        if re.search(rf"\b{model}\b", name, re.IGNORECASE) and (each["memory_gb"] != 80 or "80GB" in name):
            return str(kind)
    return "h100-80gb"


def cluster_of(kind: str, nodes: int, gpus_per_node: int) -> Cluster:
    """A cluster of a known GPU model.

    Raises:
        ValueError: the GPU model is not known.
    """
    return replace(known_gpu(kind, nodes * gpus_per_node), gpus_per_node=gpus_per_node)


def settle(recipe: Recipe, cluster: Cluster) -> list[str]:
    """Overrides to add to the job's command: the layout, if the recipe has `parallel: auto`.

    Raises:
        ValueError: the layout does not divide that many GPUs or does not fit them (the message names one that
            does), or weights are streamed, which needs a single process.
    """
    recipe.check_world(cluster.gpus)
    config = recipe.model.architecture()
    if config is None:
        return []
    if recipe.parallel.layout == "auto":
        return words_of(recipe, best_layout(recipe, cluster))
    if not recipe.parallel.cpu_offload:
        refuse_misfit(recipe, config, cluster)
    return []
