"""What is asked of a recipe before a job is written for other machines: its folder, its layout, whether it fits."""

from dataclasses import replace

from seektune.planner.hardware import Cluster, known_gpu
from seektune.recipe.recipe import Recipe
from seektune.workflows.plan import best_layout, refuse_misfit, words_of


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
