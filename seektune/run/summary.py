"""The messages of a training run on the console and the texts of its report."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from seektune.data.config import BatchConfig
from seektune.evaluate.task import Metric, TaskInfo, TaskScore
from seektune.io.console import many, say
from seektune.io.jsonl import read_records
from seektune.io.run_files import ADAPTER, CHECKPOINTS, METRICS, REFERENCE
from seektune.lora.state import adapted_modules, base_state
from seektune.model.count import count_parameters
from seektune.model.distillation import DIVERGENCE
from seektune.parallel.layer_split import bubble, count_stages
from seektune.parallel.micro_batches import micro_batch_rows
from seektune.parallel.model import ParallelModel
from seektune.recipe.recipe import Recipe
from seektune.run.data import TrainData
from seektune.run.evals import Scores, TaskComparison, compare
from seektune.train.checkpoints import complete_checkpoints
from seektune.train.held_out import NAMES
from seektune.train.index_recall import indexer_changes
from seektune.train.optim.muon_table import shares
from seektune.train.report_text import EvalText, ReportText
from seektune.train.score_plot import BeforeAfter, Reference, Score


def describe(recipe: Recipe, model: ParallelModel, data: TrainData) -> list[tuple[str, str]]:
    """Print and return model, data and settings of the run, as name and value."""
    optimizer = recipe.optimizer
    count = count_parameters(model.config)
    drafter = "DSpark stages, which are kept" if model.config.dspark_stages else "the MTP block"
    mtp = f" and {many(count.mtp)} in {drafter}" if count.mtp else ""
    facts = [
        ("model", f"DeepSeek-V4 {_origin(recipe)}"),
        (
            "parameters",
            f"{many(count.main)}{mtp}; {many(count.active)} active per token, {many(model.trainable())} trainable",
        ),
        *_adapters(recipe, model),
        ("device", f"{model.device.type}, {recipe.model.dtype}, numerics {recipe.model.numerics}"),
        *([] if recipe.train.qat == "none" else [("trained for", f"weights in the format {recipe.train.qat}")]),
        *_indexers(recipe),
        ("processes", f"{model.mesh.dims.world}: {model.mesh.dims}"),
        ("data", f"{recipe.datasets[0].kind}, {_rows(data)} from {data.source}"),
        *_objective(recipe),
        ("batch", "; ".join(_batches(recipe.batch))),
        ("optimizer", f"{optimizer.name}, lr {optimizer.lr:g}, weight decay {optimizer.weight_decay:g}"),
        *_muon(recipe, model),
        ("schedule", f"{recipe.schedule.name}, {recipe.schedule.warmup_steps} of {recipe.steps} steps warm-up"),
        ("seed", str(recipe.seed)),
    ]
    if model.mesh.dims.pp_size > 1:
        facts.insert(4, ("pipeline", _pipeline(recipe, model)))
    for name, value in facts:
        say(f"{name + ':':<12} {value}")
    return facts


def _batches(batch: BatchConfig) -> Iterator[str]:
    """The rows of a step, in each stage."""
    packed = ", packed" if batch.pack else ""
    for first, stage in batch.each_stage():
        rows = f"{stage.global_size} rows of up to {stage.length} tokens per step{packed}, {stage.micro_size} at a time"
        yield rows if first == 1 else f"from step {first} on {rows}"


def _muon(recipe: Recipe, model: ParallelModel) -> list[tuple[str, str]]:
    """How many parameters Muon trains; `seektune plan` lists them."""
    if recipe.optimizer.name != "muon":
        return []
    trained = {name: p.shape for name, p in model.full_model().named_parameters() if p.requires_grad}
    found = shares(trained)
    return [("matrices", f"{many(found.get('muon', 0))} by muon, {many(found.get('adamw', 0))} by adamw")]


def _indexers(recipe: Recipe) -> list[tuple[str, str]]:
    """How indexers are trained."""
    stages = {
        "frozen": [],
        "warmup": ["alone, by their divergence from attention to all entries; everything else is frozen"],
        "sparse": ["by their divergence from attention to the chosen entries, beside the model"],
    }
    return [("indexers", text) for text in stages[recipe.train.indexer_stage]]


def _objective(recipe: Recipe) -> list[tuple[str, str]]:
    """The objective with its settings, if it is another than cross-entropy."""
    section = recipe.objective
    if section.name == "cross_entropy":
        return []
    kept = () if section.frozen_models else ("reference_quantized", "reference_offload")
    settings = section.model_dump(exclude={"name", "reference", *kept}, exclude_none=True)
    if "teacher_files" not in settings:
        settings.pop("teacher_top_k", None)
    rewards = settings.pop("reward", [])
    teachers = settings.pop("teachers", [])
    tools = settings.pop("tools", {})
    parts = [section.name, *(f"{name} {value}" for name, value in settings.items())]
    for reward in rewards if isinstance(rewards, list) else [rewards]:
        name, *rest = reward
        parts.append(f"reward {reward[name]} ({', '.join(f'{key} {reward[key]}' for key in rest)})")
    parts += [f"tools of {tools['url']}"] if "url" in tools else []
    parts += [f"teacher ({', '.join(f'{key} {value}' for key, value in each.items() if value)})" for each in teachers]
    if section.reference_choice is not None and not section.frozen_models:
        parts.append("reference: adapters off" if recipe.switches_adapters_off else "reference: cached")
    return [("objective", ", ".join(parts))]


def _rows(data: TrainData) -> str:
    return "rows that are streamed" if data.rows is None else f"{data.rows:,} training rows"


def _pipeline(recipe: Recipe, model: ParallelModel) -> str:
    """The pipeline schedule and its idle time."""
    plan = model.mesh.dims
    config = recipe.parallel
    batch = recipe.batch
    layers = model.config.num_hidden_layers
    mtp = model.config.mtp_layers
    stages = count_stages(config.pipeline, plan.pp_size, layers, mtp)
    rows = micro_batch_rows(plan, config, model.config, batch.global_size, batch.micro_size)
    count = batch.global_size // plan.data_size // rows
    waited = bubble(config.pipeline.schedule, plan.pp_size, stages, count)
    return (
        f"{config.pipeline.schedule}, {stages} stages, {count} micro-batches of {rows} rows; "
        f"a process waits about {waited:.0%} of a step"
    )


def _adapters(recipe: Recipe, model: ParallelModel) -> list[tuple[str, str]]:
    """The adapted modules and the frozen weights."""
    if not recipe.lora.targets:
        return []
    lora = recipe.lora
    whole = model.full_model()
    names = Counter(re.sub(r"^layers\.\d+\.", "layers.N.", name) for name, _ in adapted_modules(whole))
    where = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in names.items())
    kind = "DoRA" if lora.dora else "LoRA"
    into = f", trained for merging into {lora.merge_into}" if lora.merge_into else ""
    held = sum(tensor.nbytes for tensor in base_state(whole).values())
    return [
        ("adapters", f"{kind} of rank {lora.rank}, alpha {lora.alpha:g}{into}, on {where}"),
        ("frozen", f"all else, {held / 1e9:,.2f} GB; router, indexer and balancing biases too"),
    ]


def report_text(name: str, facts: Sequence[tuple[str, str]], recipe: str, before: Scores, after: Scores) -> ReportText:
    """The texts of the report."""
    return ReportText(name, facts, recipe, [_eval_text(each) for each in compare(before, after)])


def summary(
    losses: tuple[float, float], before: Scores, after: Scores, product: Path, report: Path, recipe: Recipe
) -> None:
    """Print the results, their folder, and the command that merges adapters."""
    if recipe.objective.samples and not recipe.objective.distills:  # whose held-out loss is the negative reward
        say(f"held-out reward: {-losses[0]:z.4f} → {-losses[1]:z.4f}")
    else:
        name = NAMES[DIVERGENCE] if recipe.objective.samples else "validation loss"
        say(f"{name}: {losses[0]:z.4f} → {losses[1]:z.4f}")
    if recipe.train.indexer_stage != "frozen":
        for line in indexer_changes(read_records(report.parent / METRICS)):
            say(line)
    for each in compare(before, after):
        if each.before is not None and each.after is not None:
            for line in _changes(each.task, each.before, each.after):
                say(line)
    say(f"{product.name if product.name == ADAPTER else 'weights'}: {product}")
    if product.name == ADAPTER and recipe.model.weights is not None:
        merged = product.with_name("merged")
        to = recipe.lora.merge_into or "bf16"
        say(f"merge: seektune merge {recipe.model.weights} {product} {merged} --to {to}")
    say(f"report: {report}")


def stopped_message(signal: str, folder: Path) -> str:
    """The message of a run stopped by a signal: what is saved, and how to resume."""
    saved = complete_checkpoints(folder / CHECKPOINTS)
    if not saved and (folder / REFERENCE).is_dir():
        return (
            f"stopped by {signal} before the first step; the same command with --run_dir={folder} continues with the "
            "log-probabilities of the reference that were computed"
        )
    if not saved:
        return f"stopped by {signal} before the first step; nothing had to be saved, the same command starts again"
    return f"stopped by {signal}; saved in {saved[-1]}; the same command with --run_dir={folder} resumes"


def _origin(recipe: Recipe) -> str:
    section = recipe.model
    if section.weights is not None:
        return f"from {section.weights}"
    return f"{section.preset or section.config}, random weights"


def _changes(task: TaskInfo, before: TaskScore, after: TaskScore) -> Iterator[str]:
    """A line for each headline number of a task."""
    changes = after.since(before)
    for name, metric in task.metrics.items():
        if metric.headline:
            p = f", p = {changes[name].p_value:.2g}" if name in changes else ""
            yield (
                f"{task.title} {metric.label}: {metric.text(before.metrics[name])} → "
                f"{metric.text(after.metrics[name])}{p}"
            )


def _eval_text(found: TaskComparison) -> EvalText:
    """A task's section of the report."""
    task = found.task
    caption = f"{task.title}, {found.n:,} {task.about}; bars are 95 % intervals."
    if changes := found.changes():
        values = ", ".join(f"{task.metrics[name].label} p = {change.p_value:.2g}" for name, change in changes.items())
        caption += (
            f" Were both models equally good, a change at least as large had the probability: {values} ({task.test})."
        )
    metrics = [
        BeforeAfter(
            metric.label,
            _score(metric, name, found.before),
            _score(metric, name, found.after),
            axis="accuracy" if metric.percent else metric.unit or metric.label,
            percent=metric.percent,
            reference=None if metric.baseline is None else Reference(metric.baseline.label, metric.baseline.value),
        )
        for name, metric in task.metrics.items()
        if metric.headline
    ]
    return EvalText(task.title, caption, metrics)


def _score(metric: Metric, name: str, score: TaskScore | None) -> Score | None:
    if score is None:
        return None
    found = score.metrics[name]
    return Score(found.value, found.low, found.high, metric.text(found))
