"""Checks across keys: settings that an override makes invalid, and limits of the architecture."""

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args, get_origin

from pydantic import BaseModel

from seektune.io.console import counted
from seektune.model.config import DeepseekV4Config
from seektune.recipe.document import YamlNode, shorten
from seektune.recipe.hints import NONE_WORDS
from seektune.recipe.indexer_checks import check_choice
from seektune.recipe.objective_checks import check_kept_tokens, without_mtp
from seektune.recipe.override import KeyPath
from seektune.recipe.recipe import Recipe
from seektune.section import sections_of

PRESET = ("model", "preset")
WEIGHTS = ("model", "weights")
STEPS = ("steps",)
WARMUP = ("schedule", "warmup_steps")
STAGES = ("batch", "stages")


def fit_to_overrides(
    written: YamlNode, document: YamlNode, overrides: dict[KeyPath, YamlNode]
) -> tuple[YamlNode, list[str]]:
    """Change settings of the file that an override makes invalid, with a note each; overrides stay as they are.

    Args:
        written: the file alone.
        document: the file with the overrides applied.
        overrides: the user's overrides, by path.
    """
    document, notes = _drop_weights(written, document, overrides)
    document, about_warmup = _shorten_warmup(written, document, overrides)
    document, about_stages = _drop_stages(document, overrides)
    return document, notes + about_warmup + about_stages


def _drop_weights(
    written: YamlNode, document: YamlNode, overrides: dict[KeyPath, YamlNode]
) -> tuple[YamlNode, list[str]]:
    """Weights of one architecture do not fit another, so a recipe with another preset starts from random ones."""
    weights = written.find(WEIGHTS)
    preset = written.find(PRESET)
    if PRESET not in overrides or WEIGHTS in overrides or weights is None or weights.value is None:
        return document, []
    chosen = overrides[PRESET].value
    if chosen is None or (preset is not None and preset.value == chosen):
        return document, []
    note = (
        f"model.weights {shorten(str(weights.value))} belong to another architecture than --model.preset="
        f"{shorten(str(chosen))}: not loaded, training starts from random weights"
    )
    return document.put(WEIGHTS, replace(weights, value=None)), [note]


def _shorten_warmup(
    written: YamlNode, document: YamlNode, overrides: dict[KeyPath, YamlNode]
) -> tuple[YamlNode, list[str]]:
    """A shorter run keeps the recipe's share of warm-up if the whole warm-up does not fit."""
    before = _count(written.find(STEPS))
    after = _count(document.find(STEPS))
    warmup = _count(written.find(WARMUP))
    if STEPS not in overrides or WARMUP in overrides or not before or not after or not warmup or warmup < after:
        return document, []
    fitting = warmup * after // before
    if fitting >= after:
        return document, []
    note = f"schedule.warmup_steps lowered from {warmup} to {fitting} because --steps={after} is shorter"
    return document.put(WARMUP, YamlNode(fitting, f"--steps={after}", str(fitting), override=True)), [note]


def _drop_stages(document: YamlNode, overrides: dict[KeyPath, YamlNode]) -> tuple[YamlNode, list[str]]:
    """A shorter run leaves out the file's stages that it does not reach."""
    steps = _count(document.find(STEPS))
    stages = document.find(STAGES)
    if STEPS not in overrides or not steps or stages is None or not isinstance(stages.value, list):
        return document, []
    reached = [stage for stage in stages.value if _count(stage.find(("from_step",))) <= steps]
    late = len(stages.value) - len(reached)
    if not late or any(path[: len(STAGES)] == STAGES for path in overrides):
        return document, []
    note = f"batch.stages: left out {counted(late, 'stage')} of the recipe, after --steps={steps}"
    return document.put(STAGES, replace(stages, value=reached)), [note]


def _count(entry: YamlNode | None) -> int:
    """The entry's positive integer; 0 for anything else, which validation reports."""
    return max(entry.value, 0) if entry is not None and type(entry.value) is int else 0


def nullable_keys(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, bool]]:
    """The keys that may be null, and whether each else holds a list."""
    for name, field in model.model_fields.items():
        kinds = get_args(field.annotation)
        if type(None) in kinds:
            yield (*prefix, name), any(get_origin(kind) is list for kind in kinds)
        for section in sections_of(field).values():
            yield from nullable_keys(section, (*prefix, name))


def refuse_none(document: YamlNode) -> None:
    """Check that no key is unset with a word of another language than YAML, which would be a string, or a folder.

    Raises:
        ValueError: one is; the message names it.
    """
    for path, is_list in nullable_keys(Recipe):
        for entry in document.find_all(path):
            if isinstance(entry.value, str) and entry.value.lower() in NONE_WORDS:
                key = ".".join(path)
                instead = "[] for none, null for the default" if is_list else "null for none"
                raise ValueError(f"{entry.where}: {key}: write {instead}, not {entry.value}")


def check_architecture(recipe: Recipe, architecture: DeepseekV4Config) -> Recipe:
    """Check the recipe against the architecture; without an MTP block the default MTP weight becomes 0.

    Raises:
        ValueError: a setting needs what the architecture does not have; the message names the key.
    """
    lengths = {"batch.length": recipe.batch.length}
    lengths |= {f"batch.stages.{i}.length": stage.length or 0 for i, stage in enumerate(recipe.batch.stages)}
    for key, length in lengths.items():
        architecture.check_length(length, key)
    _check_drafter(recipe, architecture)
    check_choice(recipe, architecture)
    check_kept_tokens(recipe, architecture)
    if architecture.mtp_layers or not recipe.loss.mtp_weight:
        return recipe
    return without_mtp(recipe, f"this architecture has no MTP block ({architecture.why_no_mtp})")


def _check_drafter(recipe: Recipe, architecture: DeepseekV4Config) -> None:
    if not recipe.train.drafter:
        return
    parallel = recipe.parallel
    for wrong, message in (
        (not architecture.dspark_stages, "needs a checkpoint with DSpark stages, such as DeepSeek-V4-Flash-0731"),
        (recipe.model.weights is None, "needs model.weights: the stages of a new model have nothing to propose"),
        (bool(recipe.lora.targets), "trains no adapters: set lora.targets to [], or train the drafter after merging"),
        (
            parallel.pp_size > 1 or parallel.cp_size > 1,
            "needs parallel.pp_size and parallel.cp_size 1; parallel.ep_size spreads the experts of all layers",
        ),
        (parallel.cpu_offload, "needs parallel.cpu_offload false: the model answers prompts first"),
        (recipe.model.offload != "none", "needs model.offload none"),
    ):
        if wrong:
            raise ValueError(f"train.drafter {message}")
