"""A plan as a page of one file: bars of every process, the pipeline's timeline, and a panel that asks what if.

The page holds the formulas themselves and evaluates them as Python does (`planner.language`).
"""

import json
import re
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from seektune.io.atomic import write_atomically
from seektune.planner.expressions import IN_JAVASCRIPT
from seektune.planner.formulas import BARS, EXACT, FORMULAS
from seektune.planner.job import RECOMPUTE, Layout, lay_out
from seektune.planner.memory import LOWER, UPPER, bounds, layout_numbers, model_numbers, process_tables
from seektune.planner.report import PlanReport

MOST_GPUS = 4
"""The panel offers numbers of GPUs up to this many times the plan's, and down to its part."""
SHOWN = 256
"""Processes with a bar of their own; of more, the first and the last of each stage."""


def write_page(report: PlanReport, file: Path) -> None:
    """Write the page.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(file, page(report))


def page(report: PlanReport) -> str:
    """The whole page as text; it needs no network."""
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
        "EVALUATE": IN_JAVASCRIPT,
        # a closing tag within the data would end the script
        "DATA": json.dumps(data(report)).replace("</", "<\\/"),
    }
    # at once: a text may hold what looks like another's place
    return re.sub(f"@({'|'.join(texts)})@", lambda found: texts[found[1]], template)


def data(report: PlanReport) -> dict[str, Any]:
    """What the page's script works with."""
    layout = report.layout
    return {
        "formulas": [asdict(formula) for formula in FORMULAS],
        "bars": list(BARS),
        "exact": list(EXACT),
        "recompute": RECOMPUTE,
        "memory": report.cluster.memory,
        "bounds": {which: bounds(which) for which in (LOWER, UPPER)},
        "model": model_numbers(layout.job),
        "lora_rank": layout.job.lora_rank,
        "shown": SHOWN,
        "worlds": {str(other.dims.world): _world(other) for other in _worlds(layout)},
        "processes": [
            {name: process_tables(layout, process).rows[name] for name in ("tensors", "units")}
            for process in range(layout.pp)
        ],
        "pieces": [[p.process, p.kind, p.stage, p.micro_batch, p.begin, p.end] for p in report.time.pieces],
    }


def _world(layout: Layout) -> dict[str, Any]:
    """What depends on the number of GPUs: the mesh, micro-batches, and how many of them are in flight."""
    tables = [process_tables(layout, process) for process in range(layout.pp)]
    return {
        "numbers": layout_numbers(layout),
        "processes": [{"blocks": each.rows["blocks"], "numbers": each.numbers} for each in tables],
    }


def _worlds(layout: Layout) -> list[Layout]:
    """The same recipe on other numbers of GPUs, where its sizes fit them."""
    found: list[Layout] = []
    size = layout.dims.world
    candidates = sorted({size // 4, size // 2, size * 3 // 4, size, size * 3 // 2, size * 2, size * MOST_GPUS})
    for world in candidates:
        try:
            found.append(layout if world == size else lay_out(layout.job, world, layout.order_of))
        except ValueError:
            continue
    return found


def _step(report: PlanReport) -> str:
    time = report.time
    parts = {**{f"arithmetic of {part}": s for part, s in time.arithmetic.items()}, "memory traffic": time.memory}
    parts |= {f"messages along {axis}": seconds for axis, seconds in time.communication.items()}
    parts |= {"waiting": time.waiting, "optimizer": time.optimizer}
    largest = sorted(parts.items(), key=lambda pair: -pair[1])[:8]
    shares = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in largest if seconds > 0)
    budget = report.budget()
    bought = (
        ""
        if budget is None
        else f" {budget['tokens']:,.0f} tokens take {budget['days']:.2f} days and {budget['cost']:,.0f}."
    )
    return (
        f"A step of {time.tokens:,} tokens takes {time.seconds:.2f} s: {time.tokens_per_s:,.0f} tokens/s, "
        f"{time.mfu(report.cluster):.1%} MFU. On the slowest process: {shares}.{bought}"
    )
