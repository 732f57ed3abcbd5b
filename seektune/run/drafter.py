"""The drafter of a run: whether it is measured, and how it is trained alone."""

from seektune.evaluate.config import DRAFTER
from seektune.io.config_json import DRAFTER as STAGES
from seektune.model.config import DeepseekV4Config
from seektune.model.quantized import KindOf, quantize_modules
from seektune.model.transformer import TransformerPart
from seektune.parallel.parallelize import Prepare
from seektune.recipe.recipe import Recipe


def drafter_is_measured(recipe: Recipe, config: DeepseekV4Config, obstacle: str | None) -> bool:
    """Whether a run evaluates the drafter by default: where the model has one, and its layout can decode.

    Not where weights are streamed from disk, since each token of an answer reads all of them.

    Args:
        recipe: of the run.
        config: of the model.
        obstacle: why the layout cannot decode.

    Raises:
        ValueError: the task is named, but the model has no drafter.
    """
    evaluate = recipe.evaluate
    has_one = config.mtp_layers > 0 or (config.dspark_stages > 0 and recipe.model.weights is not None)
    if evaluate.named(DRAFTER) and not has_one:
        raise ValueError("evaluate.tasks names drafter, but the model has neither an MTP block nor DSpark stages")
    return evaluate.tasks is None and recipe.model.offload == "none" and has_one and obstacle is None


def drafter_trainer(kind_of: KindOf | None) -> Prepare:
    """A function that freezes everything but the DSpark stages.

    With `kind_of`, frozen weights that are FP4 or FP8 by it are quantized.
    """

    def prepare(part: TransformerPart) -> None:
        if kind_of is not None:
            quantize_modules(part, lambda name: "bf16" if name.startswith(STAGES) else kind_of(name))
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(name.startswith(STAGES))

    return prepare
