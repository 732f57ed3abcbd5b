"""What a training run tells its user in words, on the console and in the report."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seektune.evaluate.hellaswag import HellaswagScore
from seektune.evaluate.statistics import Estimate
from seektune.io.console import many, say
from seektune.io.run_files import ADAPTER, CHECKPOINTS
from seektune.lora.inject import base_state, carriers
from seektune.model.count import count_parameters
from seektune.parallel.dims import rows_at_a_time
from seektune.parallel.layer_split import bubble, count_stages
from seektune.parallel.model import ParallelModel
from seektune.recipe.recipe import Recipe
from seektune.run.data import TrainData
from seektune.train.checkpoints import complete_checkpoints
from seektune.train.plots import BeforeAfter, Score
from seektune.train.report import ReportText


def describe(recipe: Recipe, model: ParallelModel, lesson: TrainData) -> list[tuple[str, str]]:
    """Say and return what is trained, on what, and how, as name and value."""
    batch = recipe.batch
    optimizer = recipe.optimizer
    count = count_parameters(model.config)
    mtp = f" and {many(count.mtp)} in the MTP block" if count.mtp else ""
    packed = ", packed" if batch.pack else ""
    facts = [
        ("model", f"DeepSeek-V4 {_origin(recipe)}"),
        (
            "parameters",
            f"{many(count.main)}{mtp}; {many(count.active)} active per token, {many(model.trainable())} trainable",
        ),
        *_adapters(recipe, model),
        ("device", f"{model.device.type}, {recipe.model.dtype}, numerics {recipe.model.numerics}"),
        ("processes", f"{model.mesh.dims.world}: {model.mesh.dims}"),
        ("data", f"{recipe.data.dataset}, {lesson.rows:,} training rows from {lesson.source}"),
        (
            "batch",
            f"{batch.global_size} rows of up to {batch.length} tokens per step{packed}, {batch.micro_size} at a time",
        ),
        ("optimizer", f"{optimizer.name}, lr {optimizer.lr:g}, weight decay {optimizer.weight_decay:g}"),
        ("schedule", f"{recipe.schedule.name}, {recipe.schedule.warmup_steps} of {recipe.steps} steps warm-up"),
        ("seed", str(recipe.seed)),
    ]
    if model.mesh.dims.pp_size > 1:
        facts.insert(4, ("pipeline", _pipeline(recipe, model)))
    for name, value in facts:
        say(f"{name + ':':<12} {value}")
    return facts


def _pipeline(recipe: Recipe, model: ParallelModel) -> str:
    """How the stages take turns, and how long they wait for each other."""
    plan = model.mesh.dims
    config = recipe.parallel
    batch = recipe.batch
    layers = model.config.num_hidden_layers
    mtp = model.config.num_nextn_predict_layers
    stages = count_stages(config.pipeline, plan.pp_size, layers, mtp)
    rows = rows_at_a_time(plan, config, model.config, batch.global_size, batch.micro_size)
    count = batch.global_size // plan.data_size // rows
    waited = bubble(config.pipeline.schedule, plan.pp_size, stages, count)
    return (
        f"{config.pipeline.schedule}, {stages} stages, {count} micro-batches of {rows} rows; "
        f"a process waits about {waited:.0%} of a step"
    )


def _adapters(recipe: Recipe, model: ParallelModel) -> list[tuple[str, str]]:
    """What carries adapters, and what does not move."""
    if not recipe.lora.targets:
        return []
    lora = recipe.lora
    whole = model.outline()
    names = Counter(re.sub(r"^layers\.\d+\.", "layers.N.", name) for name, _ in carriers(whole))
    where = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in names.items())
    kind = "DoRA" if lora.dora else "LoRA"
    into = f", trained for merging into {lora.merge_into}" if lora.merge_into else ""
    held = sum(tensor.nbytes for tensor in base_state(whole).values())
    return [
        ("adapters", f"{kind} of rank {lora.rank}, alpha {lora.alpha:g}{into}, on {where}"),
        ("frozen", f"all else, {held / 1e9:,.2f} GB; router, indexer and balancing biases too"),
    ]


def report_text(
    name: str,
    facts: Sequence[tuple[str, str]],
    recipe: str,
    before: HellaswagScore | None,
    after: HellaswagScore | None,
) -> ReportText:
    """What the report tells beside the numbers of the run folder."""
    taken = next((score for score in (after, before) if score is not None), None)
    (acc_before, norm_before), (acc_after, norm_after) = _scores(before), _scores(after)
    comparisons = [
        BeforeAfter("HellaSwag acc", acc_before, acc_after),
        BeforeAfter("HellaSwag acc_norm", norm_before, norm_after),
    ]
    exam = (
        ""
        if taken is None
        else f"HellaSwag, {taken.n:,} validation questions without examples; bars are 95 % intervals."
        f"{_chances(before, after)}"
    )
    return ReportText(name, facts, recipe, comparisons if taken else [], exam)


def summary(
    losses: tuple[float, float],
    before: HellaswagScore | None,
    after: HellaswagScore | None,
    product: Path,
    report: Path,
    recipe: Recipe,
) -> None:
    """Say what came out, where it lies, and how adapters are merged."""
    say(f"validation loss: {losses[0]:.4f} → {losses[1]:.4f}")
    if before is not None and after is not None:
        change = after.since(before)
        for name, old, new in (("acc", before.acc, after.acc), ("acc_norm", before.acc_norm, after.acc_norm)):
            say(f"HellaSwag {name}: {_percent(old)} → {_percent(new)}, p = {change[name].p_value:.2g}")
    say(f"{product.name if product.name == ADAPTER else 'weights'}: {product}")
    if product.name == ADAPTER and recipe.model.weights is not None:
        merged = product.with_name("merged")
        to = recipe.lora.merge_into or "bf16"
        say(f"merge: seektune merge {recipe.model.weights} {product} {merged} --to {to}")
    say(f"report: {report}")


def stopped_message(signal: str, folder: Path) -> str:
    """What a run that was asked to stop leaves, and how it goes on."""
    saved = complete_checkpoints(folder / CHECKPOINTS)
    if not saved:
        return f"stopped by {signal} before the first step; nothing had to be saved, the same command starts again"
    return f"stopped by {signal}; saved in {saved[-1]}; the same command with --run_dir={folder} goes on from there"


def in_words(score: HellaswagScore) -> str:
    """The scores of an exam in a line."""
    return f"acc {_percent(score.acc)}, acc_norm {_percent(score.acc_norm)}, loss {score.loss:.4f}"


def _origin(recipe: Recipe) -> str:
    section = recipe.model
    if section.weights is not None:
        return f"from {section.weights}"
    return f"{section.preset or section.config}, random weights"


def _chances(before: HellaswagScore | None, after: HellaswagScore | None) -> str:
    """How likely such changes would be by chance, in a sentence; nothing where there is nothing to compare."""
    if before is None or after is None:
        return ""
    values = ", ".join(f"{name} p = {change.p_value:.2g}" for name, change in after.since(before).items())
    return f" Were both models equally good, a change at least as large had the probability: {values} (McNemar, exact)."


def _scores(score: HellaswagScore | None) -> tuple[Score | None, Score | None]:
    return (None, None) if score is None else (_score(score.acc), _score(score.acc_norm))


def _score(found: Estimate) -> Score:
    return Score(found.value, found.low, found.high)


def _percent(found: Estimate) -> str:
    return str(_score(found))
