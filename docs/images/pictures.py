"""Draws life.svg, walk.svg and memory.svg of the guides: `python docs/images/pictures.py`."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
INK, SOFT, LINE, BLUE, SAND, GREEN = "#1f2733", "#5b6675", "#8a94a3", "#d9e6fb", "#fdeedd", "#dff1e2"
FONT = 'font-family="system-ui, sans-serif"'


def box(x: int, y: int, width: int, height: int, fill: str, title: str, under: Sequence[str] = ()) -> str:
    """A rounded rectangle with a bold line and smaller ones below."""
    middle, top = x + width // 2, y + (height - 15 * len(under)) // 2 + 5
    lines = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{LINE}"/>']
    lines.append(text(middle, top, title, size=14, weight="bold"))
    lines += [text(middle, top + 16 * (n + 1), line, fill=SOFT) for n, line in enumerate(under)]
    return "\n".join(lines)


def text(
    x: int, y: int, said: str, size: int = 12, fill: str = INK, weight: str = "normal", anchor: str = "middle"
) -> str:
    """A line of text."""
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}" {FONT}'
    return f'<text x="{x}" y="{y}" {style}>{escape(said)}</text>'


def arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    """A line with a head."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5" marker-end="url(#head)"/>'


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A whole file; white behind it, so that it can be read on dark pages."""
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    opening = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<defs>{head}<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
    ]
    return "\n".join([*opening, *parts, "</svg>", ""])


def life() -> str:
    """From a recipe to a served model."""
    steps = [
        ("plan", ("what fits, where,", "how fast"), SAND),
        ("train", ("resumed exactly,", "any mesh"), BLUE),
        ("eval", ("with intervals,", "before and after"), BLUE),
        ("convert · merge", ("the release's", "own layout"), BLUE),
        ("serve", ("here, vLLM,", "SGLang"), GREEN),
    ]
    parts = [box(20 + 176 * n, 50, 140, 76, fill, command, under) for n, (command, under, fill) in enumerate(steps)]
    parts += [arrow(161 + 176 * n, 88, 194 + 176 * n, 88) for n in range(4)]
    left = ["recipe.yaml", "checkpoints/", "evaluation.json", "README.md", "OpenAI's API"]
    parts += [text(90 + 176 * n, 150, said, fill=SOFT) for n, said in enumerate(left)]
    parts.append(text(20, 30, "seektune", size=14, weight="bold", anchor="start"))
    return picture(884, 170, "plan, train, eval, convert or merge, serve", parts)


WALK = [
    ("workflows/train.py", "a run in order", "8 workflows", "run folder, report, model card", SAND),
    ("train/trainer.py", "draw, step, save, validate", "5 train", "checkpoints, guard, signals", SAND),
    ("train/step.py", "forward, backward, clip, update", "5 train", "optimizer, schedule, balance", SAND),
    ("parallel/model.py", "this process's micro-batches; sums", "4 parallel", "mesh, shards, loading", BLUE),
    ("parallel/pipeline.py", "micro-batches through the stages", "4 parallel", "torch's schedules", BLUE),
    (
        "parallel/stage.py",
        "ids or streams in; streams or loss out",
        "4 parallel",
        "expert and context parallelism",
        BLUE,
    ),
    ("model/transformer.py", "embedding, blocks, MTP block", "2 model", "head and objective", GREEN),
    ("model/block.py", "streams → attention, experts → streams", "2 model", "hyper-connections, gate, experts", GREEN),
    ("model/attention.py", "queries, window keys, entries", "2 model", "compressor, indexer", GREEN),
    ("kernels/__init__.py", "one name per operation", "0 kernels", "dispatch by device", BLUE),
    (
        "kernels/reference/sparse_attention.py",
        "softmax over window, entries, sink",
        "0 kernels",
        "eager and Triton twins",
        BLUE,
    ),
]
"""Files that a token passes in training: what happens there, layer and package, what else is there, colour."""


def walk() -> str:
    """The path of a token in training, each file in its layer."""
    parts = [
        text(20, 28, "layer and package", fill=SOFT, anchor="start"),
        text(600, 28, "also there", fill=SOFT, anchor="start"),
    ]
    for n, (file, happens, floor, other, fill) in enumerate(WALK):
        y = 44 + 68 * n
        parts.append(box(150, y, 420, 48, fill, file, (happens,)))
        parts.append(text(20, y + 29, floor, anchor="start", weight="bold"))
        parts.append(text(600, y + 29, other, anchor="start", fill=SOFT))
        if n + 1 < len(WALK):
            parts.append(arrow(360, y + 49, 360, y + 66))
    return picture(820, 44 + 68 * len(WALK) - 8, "the path of a token from the recipe to the loss", parts)


MEMORY = [
    ("weights, bf16", 4.56, BLUE),
    ("gradients, bf16", 4.56, BLUE),
    ("masters, fp32", 9.12, BLUE),
    ("moments, fp32", 18.25, BLUE),
    ("gathered weights", 8.76, SAND),
    ("whole gradients", 17.26, SAND),
    ("left for activations and buffers", 17.49, GREEN),
]
"""GB (10^9) of an 80 GB GPU of the published job: 2.28 B parameters at 16 bytes, and a step (docs/parallel.md)."""


def memory() -> str:
    """A GPU of the published job as a bar."""
    title = "one of 128 GPUs of 80 GB: V4-Flash, pp 4 × ep 32, every weight trained"
    parts, x = [text(20, 28, title, size=14, weight="bold", anchor="start")], 20
    for n, (name, amount, fill) in enumerate(MEMORY):
        width = round(amount * 10)
        parts.append(f'<rect x="{x}" y="50" width="{width}" height="46" fill="{fill}" stroke="{LINE}"/>')
        parts.append(text(x + width // 2, 78, f"{amount:.1f}", weight="bold"))
        parts.append(text(x + width // 2, 112, str(n + 1), fill=SOFT))
        legend = f"{n + 1}  {name}, {amount:.1f} GB"
        parts.append(text(20 + 280 * (n % 3), 142 + 20 * (n // 3), legend, anchor="start", fill=SOFT))
        x += width
    sums = "1 to 4 always: 36.5 GB · 5 and 6 during a step: 26.0 GB · from the dry run"
    parts.append(text(20, 206, sums, anchor="start"))
    return picture(840, 222, "memory of a GPU in the published job", parts)


def pictures() -> dict[str, str]:
    """Each file's text by name."""
    return {"life.svg": life(), "walk.svg": walk(), "memory.svg": memory()}


if __name__ == "__main__":
    for name, drawn in pictures().items():
        (FOLDER / name).write_text(drawn, encoding="utf-8")
