"""The loader of prepared rows: one for the whole run, or one for each stage of `batch.stages`."""

from collections.abc import Callable, Sequence

from seektune.data.config import BatchConfig
from seektune.data.examples import Examples
from seektune.data.loader import Loader
from seektune.data.mixing import Mixture
from seektune.data.staged_loader import StagedLoader
from seektune.recipe.recipe import Recipe


def prepared_loader(
    recipe: Recipe,
    training: Sequence[Examples],
    cut_at: Callable[[int], Sequence[Examples]],
    loader_of: Callable[[Mixture, BatchConfig], Loader],
) -> Loader | StagedLoader:
    """The loader of a run. Stages of the same length share an order if no other length is between them.

    Args:
        recipe: of the run.
        training: the examples of each dataset at `batch.length`.
        cut_at: gives them at another length.
        loader_of: makes the loader of a stage.
    """
    weights = [dataset.weight for dataset in recipe.datasets]
    cut = {recipe.batch.length: training}
    length = recipe.batch.length
    orders = 1
    mixture = Mixture(training, recipe.seed, weights)
    stages = []
    for first, stage in recipe.batch.each_stage():
        if stage.length != length:
            length = stage.length
            if length not in cut:
                cut[length] = cut_at(length)
            mixture = Mixture(cut[length], recipe.seed + orders, weights)
            orders += 1
        stages.append((first, loader_of(mixture, stage)))
    return StagedLoader(stages) if recipe.batch.stages else stages[0][1]
