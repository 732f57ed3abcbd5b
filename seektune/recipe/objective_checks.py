"""Checks of a recipe against its objective."""

from seektune.model.config import DeepseekV4Config
from seektune.recipe.recipe import Recipe
from seektune.rewards.config import ServerRewardConfig, ToolServerConfig
from seektune.rewards.json_server import longest_request
from seektune.train.objectives import DistillConfig
from seektune.train.rollout_objectives import GrpoConfig, OpdConfig, RolloutConfig


def check_objective(recipe: Recipe) -> Recipe:
    """Check the recipe against its objective; one that compares answers does not train the MTP block.

    Raises:
        ValueError: a setting does not fit the objective; the message names the key.
    """
    name = recipe.objective.name
    for dataset in recipe.datasets:
        if recipe.batch.overlong == "split" and (dataset.paired or dataset.labelled):
            raise ValueError(
                f"batch.overlong split takes the responses of data.kind {dataset.kind} apart; "
                "set --batch.overlong=cut or drop"
            )
    if recipe.model.batch_invariant and not recipe.objective.samples:
        raise ValueError(
            f"model.batch_invariant makes decoding and training equal, and objective.name {name} decodes nothing; "
            "set it to false"
        )
    if recipe.train.drafter and name != "cross_entropy":
        raise ValueError(f"train.drafter needs objective.name cross_entropy, not {name}")
    if isinstance(recipe.objective, DistillConfig):
        _check_distillation(recipe, recipe.objective)
    if not recipe.objective.compares and not recipe.objective.samples:
        return recipe
    if recipe.loss.mtp_weight:
        learnt = "rejected" if recipe.objective.compares else "sampled"
        recipe = without_mtp(recipe, f"the MTP block would learn the {learnt} answers of {name} too")
    if isinstance(recipe.objective, RolloutConfig):
        _check_rollouts(recipe, recipe.objective)
    if isinstance(recipe.objective, GrpoConfig):
        _check_policy_gradient(recipe, recipe.objective)
    if isinstance(recipe.objective, OpdConfig):
        _check_teachers(recipe, recipe.objective)
    return recipe


def _check_distillation(recipe: Recipe, section: DistillConfig) -> None:
    files = section.teacher_files is not None
    if section.teacher is None and not files and not recipe.lora.targets:
        raise ValueError("objective.teacher must name a checkpoint: null is the model without adapters (lora.targets)")
    if files and recipe.batch.stages:
        raise ValueError("objective.teacher_files has documents as batch.length cuts them; set batch.stages to []")
    if section.teacher_offload == "stream" and not (section.teacher and section.teacher_quantized):
        raise ValueError("objective.teacher_offload stream needs objective.teacher and objective.teacher_quantized")


def check_kept_tokens(recipe: Recipe, architecture: DeepseekV4Config) -> None:
    """Check that a teacher's files keep no more tokens than there are.

    Raises:
        ValueError: they do.
    """
    section = recipe.objective
    if not isinstance(section, DistillConfig) or section.teacher_files is None:
        return
    if section.teacher_top_k > architecture.vocab_size:
        raise ValueError(
            f"objective.teacher_top_k is {section.teacher_top_k}, but the vocabulary has {architecture.vocab_size} "
            "tokens; lower it"
        )


def _check_rollouts(recipe: Recipe, objective: RolloutConfig) -> None:
    batch = recipe.batch
    name = objective.name
    for wrong, message in (
        (batch.pack, "batch.pack must be false: sampled answers have a row each"),
        (
            batch.global_size % objective.group_size > 0,
            f"batch.global_size {batch.global_size} must be a multiple of objective.group_size {objective.group_size}",
        ),
        (
            objective.max_new_tokens >= batch.length,
            f"objective.max_new_tokens must be below batch.length {batch.length}, which prompt and answer share",
        ),
        (recipe.model.offload == "stream", f"objective.name {name} decodes: model.offload must be none"),
        (
            batch.overlong not in ("error", "drop"),
            f"batch.overlong must be error or drop with objective.name {name}: {batch.overlong} changes prompts",
        ),
        (
            objective.tools.url is not None and any(each.kind != "chat" for each in recipe.datasets),
            "objective.tools.url needs data.kind chat: other answers call no tools",
        ),
    ):
        if wrong:
            raise ValueError(message)
    _check_patience(recipe, objective)


def _check_patience(recipe: Recipe, objective: RolloutConfig) -> None:
    """Check that a step may take as long as a server that fails before it answers."""
    limit = recipe.guard.step_timeout
    servers: list[tuple[str, ServerRewardConfig | ToolServerConfig]]
    servers = [("objective.reward", each) for each in objective.rewards if isinstance(each, ServerRewardConfig)]
    servers += [("objective.tools", objective.tools)] if objective.tools.url is not None else []
    for key, server in servers:
        longest = longest_request(server.timeout, server.retries)
        if limit is not None and limit <= longest:
            raise ValueError(
                f"guard.step_timeout {limit:g} s would end the run while {key} may still answer: {server.retries + 1} "
                f"tries of {server.timeout:g} s and their pauses take {longest:g} s; raise it, or lower {key}.timeout"
            )


def _check_policy_gradient(recipe: Recipe, objective: GrpoConfig) -> None:
    switches = objective.reference_choice == "adapters_off"
    for wrong, message in (
        (
            switches and not recipe.lora.targets,
            "objective.beta needs objective.reference_checkpoint, or lora.targets and the model without the adapters",
        ),
        (
            switches and recipe.lora.adapter is not None,
            "objective.beta needs lora.adapter null: its reference would lack that adapter; merge it first, or set "
            "objective.reference_checkpoint",
        ),
        (
            recipe.guard.spike_factor is not None,
            "guard.spike_factor must be null with objective.name grpo: its losses are near 0, of either sign",
        ),
    ):
        if wrong:
            raise ValueError(message)


def _check_teachers(recipe: Recipe, objective: OpdConfig) -> None:
    objective.teacher_numbers([each.log_name for each in recipe.datasets])
    for number, each in enumerate(objective.teachers):
        if each.checkpoint is None and not recipe.lora.targets:
            raise ValueError(
                f"objective.teachers.{number} without a checkpoint is on the model's frozen weights, which needs "
                "lora.targets; name a checkpoint"
            )


def without_mtp(recipe: Recipe, why: str) -> Recipe:
    """The recipe with an MTP weight of 0.

    Raises:
        ValueError: it sets another.
    """
    if "mtp_weight" in recipe.loss.model_fields_set or recipe.loss.mtp_decay_weight is not None:
        raise ValueError(f"loss.mtp_weight must be 0: {why}")
    return recipe.model_copy(update={"loss": recipe.loss.model_copy(update={"mtp_weight": 0.0})})
