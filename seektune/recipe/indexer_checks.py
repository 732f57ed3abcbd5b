"""Checks of a recipe that trains indexers."""

from seektune.model.config import CSA, DeepseekV4Config
from seektune.recipe.objective_checks import without_mtp
from seektune.recipe.recipe import Recipe


def check_indexer(recipe: Recipe) -> Recipe:
    """Check that indexers can be trained; a warm-up does not train the MTP block.

    Raises:
        ValueError: a setting does not fit; the message names the key.
    """
    train = recipe.train
    if train.indexer == "frozen":
        if train.indexer_warmup:
            raise ValueError("train.indexer_warmup needs train.indexer kl; frozen indexers are not trained")
        return recipe
    _check_trained(recipe)
    if not train.indexer_warmup:
        return recipe
    _check_warmup(recipe)
    return without_mtp(recipe, "a warm-up trains the indexers alone") if recipe.loss.mtp_weight else recipe


def _check_trained(recipe: Recipe) -> None:
    for wrong, message in (
        (
            bool(recipe.lora.targets),
            "trains weights of the base, which adapter files do not hold: set lora.targets to []",
        ),
        (recipe.train.drafter, "must be frozen with train.drafter, which leaves the model's weights as they are"),
        (recipe.model.quantized, "trains weights in model.dtype: set model.quantized to false"),
    ):
        if wrong:
            raise ValueError(f"train.indexer {message}")


def check_choice(recipe: Recipe, architecture: DeepseekV4Config) -> None:
    """Check that the indexers of this architecture, if they are trained, have something to choose from.

    Raises:
        ValueError: they do not; the message names the key.
    """
    if recipe.train.indexer == "frozen":
        return
    ratios = {architecture.ratio(layer) for layer in range(architecture.num_hidden_layers)}
    if CSA not in ratios:
        raise ValueError("train.indexer must be frozen: this architecture has no CSA layer, and so no indexer")
    longest = max(stage.length for _, stage in recipe.batch.each_stage())
    least = (architecture.index_topk + 1) * CSA
    if longest < least:
        raise ValueError(
            f"train.indexer needs a batch.length of {least} or more, not {longest}: shorter rows have no more entries "
            f"than the {architecture.index_topk} that are chosen"
        )


def _check_warmup(recipe: Recipe) -> None:
    for wrong, message in (
        (recipe.objective.name != "cross_entropy", "objective.name cross_entropy"),
        (recipe.loss.balance_weight > 0, "loss.balance_weight 0"),
        (recipe.loss.bias_update_speed > 0, "loss.bias_update_speed 0"),
        (recipe.loss.z_weight > 0, "loss.z_weight 0"),
    ):
        if wrong:
            raise ValueError(f"train.indexer_warmup trains the indexers alone, and needs {message}")
