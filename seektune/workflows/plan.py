"""The command `plan`: memory, speed and cost of a job, from a recipe and a description of GPUs."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from seektune.io.atomic import refuse_existing
from seektune.io.console import say
from seektune.model.config import DeepseekV4Config
from seektune.planner.hardware import GIGA, Cluster
from seektune.planner.job import Layout
from seektune.planner.memory import first_ranks, peak_rank
from seektune.planner.report import Budget, PlanReport, make_report, overrides
from seektune.planner.report_html import write_html
from seektune.planner.search import Candidate, fewest_nodes, nearest, search
from seektune.recipe.recipe import Recipe
from seektune.train.optim.muon_table import table_lines
from seektune.workflows.planning import job_of, layout_of, ordered

PIPE = 160
"""Width of tables if the output is not a terminal."""
LISTED = 10
"""Layouts of a search that are printed."""
REST = ("teacher", "optimizer_work", "rollout_work", "fsdp_buffers", "nccl", "allocator", "context")
"""Parts that the last column sums up."""
COLUMNS = ("weights", "buffers", "gradients", "optimizer", "gathered", "whole grads", "activations", "losses", "rest")


@dataclass(frozen=True)
class PlanOptions:
    """Options of `seektune plan`."""

    search: bool = False
    as_json: bool = False
    html: Path | None = None
    money: Budget | None = None


def plan(recipe: Recipe, cluster: Cluster, asked: PlanOptions) -> bool:
    """Print the plan of a recipe on a cluster; returns whether the upper bound fits.

    With `search` the plan is that of the fastest layout that fits.

    Raises:
        ValueError: the architecture is not known without the network, nothing fits so many GPUs, or the HTML file
            exists already.
    """
    if asked.html is not None:
        refuse_existing(asked.html)
    report, nodes = take_plan(recipe, cluster, asked)
    if asked.html is not None:
        write_html(report, asked.html)
    if asked.as_json:
        say(json.dumps({**report.to_dict(), "fewest_nodes": nodes}, indent=2))
    else:
        _show(report, nodes)
        for line in _muon_table(report) if recipe.optimizer.name == "muon" else ():
            say(line)
        if asked.html is not None:
            say(f"\npage: {asked.html}")
    return report.verdict()[0]


def take_plan(recipe: Recipe, cluster: Cluster, asked: PlanOptions) -> tuple[PlanReport, dict[str, str]]:
    """The plan as an object, and with `search` the fewest nodes for each way of training."""
    config = recipe.model.architecture()
    if config is None:
        raise ValueError(
            f"a plan does not use the network, so the architecture of {recipe.model.weights} is unknown; add "
            "--model.preset=flash or pro"
        )
    job = job_of(recipe, config)
    if not asked.search:
        return make_report(layout_at_launch(recipe, config, cluster), cluster, asked.money), {}
    found = search(job, cluster, ordered)
    nodes = {name: _nodes(way, cluster) for name, way in _ways(recipe).items()}
    if not found:
        some = ", ".join(f"{name}: {text}" for name, text in nodes.items())
        raise ValueError(f"no layout of this recipe fits {cluster.gpus} x {cluster.gpu}; fewest nodes: {some}")
    return make_report(found[0].layout, cluster, asked.money, found), nodes


def best_layout(recipe: Recipe, cluster: Cluster) -> Candidate:
    """The fastest layout that fits, for `parallel: auto`.

    Raises:
        ValueError: none does.
    """
    config = recipe.model.architecture()
    assert config is not None
    found = search(job_of(recipe, config), cluster, ordered)
    if not found:
        raise ValueError(f"no layout of this recipe fits {cluster.gpus} x {cluster.gpu}")
    return found[0]


def words_of(recipe: Recipe, best: Candidate) -> list[str]:
    """Overrides that set this layout in a recipe with `parallel: auto`."""
    asked = recipe.parallel
    # these follow from the other sizes
    left = {"dp_shard": asked.dp_shard, "pipeline.layers_per_stage": asked.pipeline.layers_per_stage}
    cleared = [f"--parallel.{key}=null" for key, value in left.items() if value is not None]
    return ["--parallel.layout=given", *overrides(best), *cleared]


def layout_at_launch(recipe: Recipe, config: DeepseekV4Config, cluster: Cluster) -> Layout:
    """The recipe's layout, or with `parallel: auto` the one that a launch chooses.

    Raises:
        ValueError: the layout does not divide that many GPUs, no layout fits them, or the recipe is for one process.
    """
    recipe.check_world(cluster.gpus)
    if recipe.parallel.layout == "auto":
        return best_layout(recipe, cluster).layout
    return layout_of(job_of(recipe, config), cluster.gpus)


def refuse_misfit(recipe: Recipe, config: DeepseekV4Config, cluster: Cluster) -> None:
    """Stop a job whose lower bound does not fit the memory of its processes, before it starts.

    Raises:
        ValueError: it does not fit; the message names the nearest layout that does.
    """
    job = job_of(recipe, config)
    layout = layout_of(job, cluster.gpus)
    if peak_rank(first_ranks(layout, cluster.factors)).lower["total"] <= cluster.memory:
        return
    other = nearest(job, cluster, ordered)
    hint = "no other layout does either; more processes, a smaller batch.length or --model.preset=tiny may"
    if other is not None:
        hint = f"this fits: {' '.join(overrides(other))} (seektune plan says more)"
    raise ValueError(f"{make_report(layout, cluster).verdict()[1]}; {hint}")


def _ways(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe as full training, as LoRA on released weights, and as LoRA on weights streamed from disk."""
    if recipe.lora.targets:
        lora = recipe.lora
    else:
        lora = recipe.lora.model_copy(update={"targets": ("attn.wq_b", "attn.wo_b")})
    weights = recipe.model.weights or "released weights"
    plain = recipe.model.model_copy(update={"quantized": False, "offload": "none"})
    quantized = recipe.model.model_copy(update={"quantized": True, "offload": "none", "weights": weights})
    streamed = quantized.model_copy(update={"offload": "stream"})
    off = type(recipe.lora)()
    return {
        "full SFT": recipe.model_copy(update={"model": plain, "lora": off}),
        f"LoRA (rank {lora.rank}) on released weights": recipe.model_copy(update={"model": quantized, "lora": lora}),
        "the same, streamed from disk": recipe.model_copy(update={"model": streamed, "lora": lora}),
    }


def _nodes(recipe: Recipe, cluster: Cluster) -> str:
    config = recipe.model.architecture()
    assert config is not None
    found = fewest_nodes(job_of(recipe, config), cluster, ordered)
    if found is None:
        return "none of the numbers tried"
    nodes, best = found
    many = f"{nodes} node{'s' * (nodes > 1)} of {cluster.gpus_per_node}"
    return f"{'one GPU' if best.layout.dims.world == 1 else many} ({best.layout})"


def _show(report: PlanReport, nodes: dict[str, str]) -> None:
    # a pipe has no width of its own, and tables should not break there
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE)
    layout = report.layout
    cluster = report.cluster
    time = report.time
    console.print(f"{cluster.gpus} x {cluster.gpu}: {layout}", soft_wrap=True)
    console.print(report.verdict()[1], soft_wrap=True, style="bold")
    console.print(_memory_table(report))
    console.print(
        f"a step: {time.seconds:.2f} s, {time.tokens_per_s:,.0f} tokens/s, {time.mfu(cluster):.1%} MFU, "
        f"{time.tokens:,} tokens",
        soft_wrap=True,
    )
    console.print(_time_table(report))
    if (budget := report.budget_cost()) is not None:
        console.print(
            f"{budget['tokens']:,.0f} tokens: {budget['days']:.2f} days, {budget['cost']:,.0f} at {budget['price']:g} "
            "a GPU-hour",
            soft_wrap=True,
        )
    if report.others:
        console.print(_search_table(report.others))
        console.print(f"the fastest: {' '.join(overrides(report.others[0]))}", soft_wrap=True)
        for name, text in nodes.items():
            console.print(f"fewest nodes, {name}: {text}", soft_wrap=True)
    for line in report.assumptions():
        console.print(f"- {line}", soft_wrap=True, style="dim")


def _muon_table(report: PlanReport) -> list[str]:
    """Which trained parameters Muon has and which AdamW."""
    weights = report.layout.job.weights.all
    return ["", "optimizer.name muon:", *table_lines({each.name: each.shape for each in weights if each.learns})]


def _memory_table(report: PlanReport) -> Table:
    table = Table(title="GB of the first process of each stage, upper bound; * counted exactly", title_justify="left")
    for column in (
        "rank",
        *(f"{name}*" if number < 4 else name for number, name in enumerate(COLUMNS)),
        "total",
        "low",
    ):
        table.add_column(column, justify="right")
    for memory in report.firsts:
        up = memory.upper
        weights = up["bf16"] + up["fp32"] + up["quantized"]
        rest = sum(up[name] for name in REST)
        optimizer = up["moments"] + up["master"]
        made = ("gathered", "whole_gradients", "activations", "logits")
        parts = (weights, up["buffers"], up["gradients"], optimizer, *(up[name] for name in made), rest, up["total"],
                 memory.lower["total"])  # fmt: skip
        table.add_row(str(memory.rank), *(f"{part / GIGA:.2f}" for part in parts))
    return table


def _time_table(report: PlanReport) -> Table:
    time = report.time
    table = Table(title="seconds of a step on the slowest process", title_justify="left")
    table.add_column("part")
    table.add_column("s", justify="right")
    rows: Iterable[tuple[str, float]] = [
        *((f"arithmetic: {part}", seconds) for part, seconds in time.arithmetic.items()),
        ("memory traffic", time.memory),
        *((f"communication: {axis}", seconds) for axis, seconds in time.communication.items()),
        ("pipeline bubble", time.bubble),
        ("optimizer", time.optimizer),
    ]
    for name, seconds in rows:
        if seconds > 0:
            table.add_row(name, f"{seconds:.3f}")
    return table


def _search_table(others: Iterable[Candidate]) -> Table:
    found = list(others)
    table = Table(title=f"{len(found)} layouts fit; the fastest", title_justify="left")
    for column in ("s", "tokens/s", "GB", "layout"):
        table.add_column(column, justify="left" if column == "layout" else "right", overflow="fold")
    for each in found[:LISTED]:
        size = f"{each.memory.upper['total'] / GIGA:.1f}"
        table.add_row(f"{each.time.seconds:.2f}", f"{each.time.tokens_per_s:,.0f}", size, str(each.layout))
    return table
