"""Draws the pictures of docs/parallel.md; the schedules are the engine's, played with a backward of two forwards."""

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _Action, _ComputationType

from seektune.parallel.layer_split import V_SCHEDULES, bubble
from seektune.parallel.pipeline import SCHEDULES
from seektune.parallel.simulate.fake_backend import fake_process_group

PROCESSES, MICRO_BATCHES = 4, 8
COSTS = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}
COLOURS = {"F": "#9ecae1", "B": "#fdae6b", "I": "#fdae6b", "W": "#a1d99b"}
CAPTION = """One colour: one place on the expert axis, the same half of the experts. Tokens travel between neighbours
of two colours (0 and 1, 2 and 3, ...). Each expert is cut over the two processes of its colour within a copy (0 and 2),
and its gradient is summed over all four of its stage."""

plt.rcParams.update({"svg.hashsalt": "seektune", "svg.fonttype": "none", "font.size": 8})


def one_forward_one_backward() -> dict[int, list[_Action]]:
    """What the engine's Schedule1F1B does; it plans nothing ahead that could be shown."""
    plan: dict[int, list[_Action]] = {}
    for process in range(PROCESSES):
        forwards = [_Action(process, _ComputationType.FORWARD, micro) for micro in range(MICRO_BATCHES)]
        backwards = [_Action(process, _ComputationType.FULL_BACKWARD, micro) for micro in range(MICRO_BATCHES)]
        warm = PROCESSES - process
        pairs = [action for pair in zip(backwards, forwards[warm:], strict=False) for action in pair]
        plan[process] = forwards[:warm] + pairs + backwards[MICRO_BATCHES - warm :]
    return plan


def order(name: str) -> tuple[int, dict[int, list[Any]]]:
    """Stages, and what each process does, as the engine's schedule says."""
    if name == "1f1b":
        return PROCESSES, one_forward_one_backward()
    count = PROCESSES * 2
    with fake_process_group(0, PROCESSES):
        group = dist.group.WORLD
        numbers = [0, count - 1] if name in V_SCHEDULES else list(range(0, count, PROCESSES))
        x = torch.empty(1, 1, device="meta")
        stages = [
            PipelineStage(nn.Identity(), n, count, torch.device("meta"), input_args=x, output_args=x, group=group)
            for n in numbers
        ]
        made = SCHEDULES[name](stages, MICRO_BATCHES, loss_fn=lambda out, target: out)
        return count, made.pipeline_order


def play(name: str) -> tuple[list[tuple[int, float, float, str, int, int]], float]:
    """Pieces of work (process, begin, time, kind, micro-batch, stage), and the share of time without any."""
    stages, plan = order(name)
    queues = {process: [a for action in actions if action for a in (action.sub_actions or (action,))]
              for process, actions in plan.items()}  # fmt: skip
    scale = PROCESSES / stages
    done: dict[tuple[str, int, int], float] = {}
    free = dict.fromkeys(queues, 0.0)
    work = []
    while any(queues.values()):
        before = len(work)
        for process, queue in queues.items():
            while queue and (ready := _ready(queue[0], stages, done)) is not None:
                action = queue.pop(0)
                kind, key = action.computation_type.value, (action.stage_index, action.microbatch_index)
                begin = max(free[process], ready)
                free[process] = begin + COSTS[kind] * scale
                done[(kind, *key)] = free[process]
                if kind == "B":
                    done[("I", *key)] = free[process]
                work.append((process, begin, COSTS[kind] * scale, kind, action.microbatch_index, action.stage_index))
        assert len(work) > before, "the schedule waits for itself"
    end = max(free.values())
    return work, 1 - 3.0 * MICRO_BATCHES / end


def _ready(action: Any, stages: int, done: dict[tuple[str, int, int], float]) -> float | None:
    """When its inputs are there; None if that is not known yet."""
    kind, stage, micro = action.computation_type.value, action.stage_index, action.microbatch_index
    needs = []
    if kind == "F":
        needs = [("F", stage - 1, micro)] if stage > 0 else []
    elif kind == "W":
        needs = [("I", stage, micro)]
    else:
        needs = [("F", stage, micro)] + ([("I", stage + 1, micro)] if stage < stages - 1 else [])
    times = [done.get(need) for need in needs]
    return None if None in times else max([0.0, *(time for time in times if time is not None)])


def draw_schedules(folder: Path) -> dict[str, float]:
    """Write schedules.svg; the share of time that each schedule waits."""
    figure, rows = plt.subplots(len(SCHEDULES), 1, figsize=(11, 8.4), sharex=True)
    waits = {}
    for axes, name in zip(rows, SCHEDULES, strict=True):
        work, waits[name] = play(name)
        for process, begin, time, kind, micro, stage in work:
            late = stage >= PROCESSES
            axes.add_patch(Rectangle((begin, -process - 0.45), time, 0.9, facecolor=COLOURS[kind], edgecolor="white"))
            style = {"color": "black" if late else "#555555", "fontweight": "bold" if late else "normal"}
            axes.text(begin + time / 2, -process, str(micro), ha="center", va="center", fontsize=6, **style)
        axes.set_yticks([-p for p in range(PROCESSES)], [f"process {p}" for p in range(PROCESSES)])
        axes.set_xlim(0, 37)
        axes.set_ylim(-PROCESSES + 0.4, 0.6)
        stages = PROCESSES if name == "1f1b" else 2 * PROCESSES
        formula = bubble(name, PROCESSES, stages, MICRO_BATCHES)
        axes.set_title(f"{name}: waits {waits[name]:.0%} (formula {formula:.0%})", loc="left")
        axes.spines[:].set_visible(False)
    rows[-1].set_xlabel("time, a micro-batch's forward through a process's layers being 1")
    figure.text(0.99, 0.985, "blue forward, orange backward (of inputs), green backward of weights; bold: a process's "
                "second stage", ha="right", va="top")  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(folder / "schedules.svg", metadata={"Date": None})
    return waits


def draw_mesh(folder: Path) -> None:
    """Write mesh.svg: the 16 processes of pp 2 x dp_replicate 2 x dp_shard 4 with ep 2."""
    figure, axes = plt.subplots(figsize=(11, 3.6))
    for rank in range(16):
        pp, within = divmod(rank, 8)
        _box(axes, within, pp, rank)
    axes.set_xlim(-1.1, 7.6)
    axes.set_ylim(-3.5, 1.0)
    for pp in range(2):
        axes.text(-1.1, -2.1 * pp + 0.05, f"stage {pp}", va="center", fontweight="bold")
    for copy in range(2):
        axes.annotate("", (4 * copy - 0.4, 0.62), (4 * copy + 3.4, 0.62), arrowprops={"arrowstyle": "<->"})
        axes.text(4 * copy + 1.5, 0.68, f"copy {copy}: FSDP2 cuts attention and shared parts over these 4", ha="center")
    axes.annotate("", (0, -1.55), (0, -0.5), arrowprops={"arrowstyle": "<->", "color": "#d62728"})
    axes.text(0.1, -1.05, "streams of a micro-batch: rank 0 and rank 8, and so on", color="#d62728", va="center")
    axes.text(-1.1, -3.4, CAPTION)
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(folder / "mesh.svg", metadata={"Date": None})


def _box(axes: Axes, within: int, pp: int, rank: int) -> None:
    colour = ("#c6dbef", "#fdd0a2")[within % 2]
    axes.add_patch(Rectangle((within - 0.4, -2.1 * pp - 0.45), 0.8, 1.0, facecolor=colour, edgecolor="#555555"))
    axes.text(within, -2.1 * pp + 0.2, f"rank {rank}", ha="center", va="center", fontweight="bold")
    axes.text(within, -2.1 * pp - 0.15, f"dp {within}\nep {within % 2}", ha="center", va="center")


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    draw_mesh(place)
    print({name: round(wait, 3) for name, wait in draw_schedules(place).items()})
