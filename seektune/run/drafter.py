"""The model of a run with its drafter, for measuring how many drafts it accepts."""

from pathlib import Path

import torch

from seektune.checkpoint import load_weights
from seektune.checkpoint.source import FolderSource
from seektune.evaluate.config import DRAFTER
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes
from seektune.model.config import DeepseekV4Config
from seektune.model.quantized import quantize_modules
from seektune.model.transformer import TransformerPart
from seektune.parallel.model import ParallelModel
from seektune.recipe.recipe import Recipe


def drafter_is_measured(recipe: Recipe, config: DeepseekV4Config, world: int) -> bool:
    """Whether a run evaluates the drafter: by name, or by default where the model has one and one process holds both.

    By default not where weights are streamed from disk, since each token of an answer reads all of them.

    Raises:
        ValueError: the task is named, but the model has no drafter or is spread over processes.
    """
    evaluate = recipe.evaluate
    has_one = config.mtp_layers > 0 or (config.dspark_stages > 0 and recipe.model.weights is not None)
    named = evaluate.named(DRAFTER)
    if named and not has_one:
        raise ValueError("evaluate.tasks names drafter, but the model has neither an MTP block nor DSpark stages")
    if named and world > 1:
        raise ValueError(
            "evaluate.tasks names drafter, which needs a run of one process; "
            "seektune eval --task drafter measures the result"
        )
    by_default = evaluate.tasks is None and recipe.model.offload == "none"
    return named or (by_default and has_one and world == 1)


def train_drafter(part: TransformerPart) -> None:
    """Freeze everything but the DSpark stages."""
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(name.startswith("mtp."))


def decoding_model(model: ParallelModel) -> DeepseekV4ForCausalLM:
    """The model of a run of one process, able to decode, with its MTP block or the DSpark stages of its base.

    The stages take memory of their own, in the bytes of the checkpoint, until the result is dropped.
    """
    whole = DeepseekV4ForCausalLM.of(model.whole)
    if model.carried is not None:
        whole.mtp = _stages(model.carried, whole)
    return whole


def _stages(folder: Path, model: DeepseekV4ForCausalLM) -> torch.nn.ModuleList:
    config = model.config
    complete = DeepseekV4ForCausalLM(config, "meta", model.dtype, model.numerics, drafter=True)
    kind = FolderSource(folder).kind
    quantize_modules(complete.mtp, lambda name: kind(f"mtp.{name}"))
    complete.mtp.to_empty(device=model.device)
    state = {f"mtp.{name}": tensor for name, tensor in complete.mtp.state_dict().items()}
    load_weights(state, folder, checkpoint_shapes(config))
    return complete.mtp
