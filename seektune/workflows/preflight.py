"""The GPUs of this machine as the planner describes them, and what a launch asks the planner before it starts."""

import re
from dataclasses import replace

import psutil
import torch

from seektune.io.console import say
from seektune.model.config import DeepseekV4Config
from seektune.planner.hardware import Cluster, hardware_data, known_gpu
from seektune.recipe.recipe import Recipe
from seektune.workflows.plan import best_layout, refuse_misfit, words_of

CPU_RATES = {"flops": 1e11, "memory_rate": 2e10, "link": 5e9, "network": 1e9}
"""Of a process on a CPU: only their proportions matter where layouts are compared."""


def cluster_here(processes: int, nodes: int) -> Cluster:
    """So many processes on each of so many nodes like this one; without GPUs its memory is shared among them.

    A GPU that is not known by its name is taken for an H100 with its own memory.
    """
    if not torch.cuda.is_available():
        memory = psutil.virtual_memory().total // processes
        return Cluster("cpu", processes * nodes, processes, memory, **CPU_RATES)
    device = torch.cuda.get_device_properties(0)
    usual = known_gpu(_kind(device.name), processes * nodes)
    return replace(usual, gpu=device.name, gpus_per_node=max(processes, 1), memory=device.total_memory)


def choose_layout(recipe: Recipe, cluster: Cluster) -> list[str]:
    """Words that give the recipe the fastest layout that fits; says which.

    Raises:
        ValueError: the architecture is not known here, or nothing fits.
    """
    if recipe.model.architecture() is None:
        raise ValueError(
            f"parallel: auto needs to know what {recipe.model.weights} is; name it: --model.preset=flash or pro"
        )
    best = best_layout(recipe, cluster)
    given, *words = words_of(recipe, best)
    total = best.memory.upper["total"] / 1e9
    say(f"parallel: auto takes {' '.join(words)} (up to {total:.1f} of {cluster.memory / 1e9:.1f} GB each)")
    return [given, *words]


def check_memory(recipe: Recipe, config: DeepseekV4Config | None, processes: int, nodes: int) -> None:
    """Stop where the job cannot fit these devices; an architecture that only the network knows, and offloading, pass.

    Raises:
        ValueError: it cannot; the sentence names the nearest layout that does.
    """
    if config is not None and not recipe.parallel.cpu_offload:
        refuse_misfit(recipe, config, cluster_here(processes, nodes))


def _kind(name: str) -> str:
    """The known kind whose words are all in a device's name."""
    for kind, each in hardware_data()["gpus"].items():
        model = kind.split("-")[0] if not kind.startswith("rtx") else "RTX PRO 6000"
        if re.search(rf"\b{model}\b", name, re.IGNORECASE) and (each["memory_gb"] != 80 or "80GB" in name):
            return str(kind)
    return "h100-80gb"


def cluster_of(kind: str, nodes: int, gpus_per_node: int) -> Cluster:
    """So many nodes of a known kind of GPU.

    Raises:
        ValueError: the kind is not known.
    """
    return replace(known_gpu(kind, nodes * gpus_per_node), gpus_per_node=gpus_per_node)


def settle(recipe: Recipe, cluster: Cluster) -> list[str]:
    """Words to add to the job's command: the layout, where the recipe leaves it open.

    Raises:
        ValueError: the layout does not divide so many GPUs or does not fit them (the sentence names one that
            does), or streamed weights would have several processes.
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
