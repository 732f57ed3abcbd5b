"""A plan as one HTML file: memory bars of every process, the pipeline's timeline, and a panel for what-if changes.

The page contains the formulas and evaluates them as Python does (`planner.expressions`).
"""

import json
import re
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from seektune.io.atomic import write_atomically
from seektune.planner.expressions import EVALUATE_JS
from seektune.planner.formulas import BARS, EXACT, FORMULAS
from seektune.planner.job import RECOMPUTE, Layout, make_layout
from seektune.planner.memory import HELD_TABLES, LOWER, UPPER, bounds, layout_numbers, model_numbers, process_tables
from seektune.planner.report import PlanReport

WORLD_FACTOR = 4
"""The panel offers up to this many times the plan's number of GPUs."""
MAX_BARS = 256
"""With more processes, only the first and the last of each stage have a bar."""


def write_html(report: PlanReport, file: Path) -> None:
    """Write the HTML file.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(file, render_html(report))


def render_html(report: PlanReport) -> str:
    """The HTML as text; it needs no network."""
    template = resources.files("seektune.planner").joinpath("report.html").read_text(encoding="utf-8")
    layout = report.layout
    cluster = report.cluster
    texts = {
        "GPUS": str(cluster.gpus),
        "TITLE": escape(f"{cluster.gpus} x {cluster.gpu}"),
        "LAYOUT": escape(str(layout)),
        "VERDICT": escape(report.verdict()[1]),
        "STEP": escape(_step(report)),
        "ASSUMPTIONS": "".join(f"<li>{escape(line)}</li>" for line in report.assumptions()),
        "EVALUATE": EVALUATE_JS,
        # a closing tag within the data would end the script
        "DATA": json.dumps(data(report)).replace("</", "<\\/"),
    }
    # all in one pass: an inserted text may contain what looks like another placeholder
    return re.sub(f"@({'|'.join(texts)})@", lambda match: texts[match[1]], template)


def data(report: PlanReport) -> dict[str, Any]:
    """The data of the page's script."""
    layout = report.layout
    return {
        "formulas": [asdict(formula) for formula in FORMULAS],
        "bars": list(BARS),
        "exact": list(EXACT),
        "recompute": RECOMPUTE,
        "memory": report.cluster.memory,
        "bounds": {which: bounds(which, report.cluster.factors) for which in (LOWER, UPPER)},
        "model": model_numbers(layout.job),
        "lora_rank": layout.job.lora_rank,
        "shown": MAX_BARS,
        "worlds": {str(other.dims.world): _world(other) for other in _worlds(layout)},
        "processes": [
            {name: process_tables(layout, process).rows[name] for name in HELD_TABLES} for process in range(layout.pp)
        ],
        "spans": [[s.process, s.kind, s.stage, s.micro_batch, s.begin, s.end] for s in report.time.spans],
    }


def _world(layout: Layout) -> dict[str, Any]:
    """The data that depends on the number of GPUs: the mesh, micro-batches, and how many of them are in flight."""
    tables = [process_tables(layout, process) for process in range(layout.pp)]
    return {
        "numbers": layout_numbers(layout),
        "processes": [{"blocks": each.rows["blocks"], "numbers": each.numbers} for each in tables],
    }


def _worlds(layout: Layout) -> list[Layout]:
    """The same recipe on other numbers of GPUs that its sizes allow."""
    layouts: list[Layout] = []
    size = layout.dims.world
    candidates = sorted({size // 4, size // 2, size * 3 // 4, size, size * 3 // 2, size * 2, size * WORLD_FACTOR})
    for world in candidates:
        try:
            layouts.append(layout if world == size else make_layout(layout.job, world, layout.order_of))
        except ValueError:
            continue
    return layouts


def _step(report: PlanReport) -> str:
    time = report.time
    parts = {**{f"arithmetic of {part}": s for part, s in time.arithmetic.items()}, "memory traffic": time.memory}
    parts |= {f"messages along {axis}": seconds for axis, seconds in time.communication.items()}
    parts |= {"bubble": time.bubble, "optimizer": time.optimizer}
    largest = sorted(parts.items(), key=lambda pair: -pair[1])[:8]
    shares = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in largest if seconds > 0)
    budget = report.budget_cost()
    cost = (
        ""
        if budget is None
        else f" {budget['tokens']:,.0f} tokens take {budget['days']:.2f} days and cost {budget['cost']:,.0f}."
    )
    return (
        f"A step of {time.tokens:,} tokens takes {time.seconds:.2f} s: {time.tokens_per_s:,.0f} tokens/s, "
        f"{time.mfu(report.cluster):.1%} MFU. On the slowest process: {shares}.{cost}"
    )
