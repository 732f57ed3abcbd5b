"""The runs whose losses are kept as text, and how they are recorded: `python -m tests.golden.runs`, from the root.

A refactoring may not move a digit of them. A change that is meant to move some records them anew and says so in
docs/numerics.md.
"""

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch

from seektune.data.datasets.synthetic import write_hellaswag
from tests.run_cli import worker_processes

HERE = Path(__file__).parent
RECIPES = "examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_{}.yaml"
FOUR = ("--parallel.pp_size=2", "--parallel.ep_size=2", "--batch.micro_size=2")
CASES: dict[str, tuple[str, ...]] = {
    "fp32": ("hellaswag",),
    "bf16": ("hellaswag", "--model.dtype=bf16"),
    "fp32_pp2_ep2": ("hellaswag", *FOUR),
    "bf16_pp2_ep2": ("hellaswag", "--model.dtype=bf16", *FOUR),
    "packed": ("hellaswag", "--batch.pack=true"),
    "lora": ("lora",),
    "muon": ("hellaswag", "--optimizer.name=muon", "--optimizer.lr=1e-3"),
    "pretrain": (
        *("hellaswag", "--optimizer.name=muon", "--optimizer.lr=1e-3", "--batch.pack=true", "--batch.overlong=split"),
        *("--schedule.name=wsd", "--schedule.decay_share=0.5", "--schedule.decay_shape=cosine", "--loss.z_weight=1e-3"),
        *("--loss.mtp_weight=0.3", "--loss.mtp_decay_weight=0.1", "--loss.balance_weight=1e-4"),
        *("--batch.global_size=4", "--batch.micro_size=2", "--batch.length=64"),
        "--batch.stages=[{from_step: 7, global_size: 8}, {from_step: 14, length: 128, micro_size: 1}]",
    ),
}
"""Recipe and overrides of each run, by the name of its file here."""
SETTINGS = (
    *("--steps=20", "--schedule.warmup_steps=4", "--batch.global_size=8", "--evaluate.every=10"),
    *(
        "--batch.micro_size=4",
        "--evaluate.limit=8",
        "--evaluate.before=false",
        "--evaluate.after=true",
        "--evaluate.tasks=[hellaswag]",
        "--logging.to=[]",
    ),
    *("--checkpoint.every=null", "--seed=1"),
)


def processor() -> str:
    """What decides how floating-point sums are ordered: torch, the processor and its caches."""
    file = Path("/proc/cpuinfo")
    kept = ("model name", "model\t", "stepping", "cache size", "flags")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.exists() else [platform.processor()]
    facts = [line for line in lines if line.startswith(kept)] if file.exists() else lines
    told = "\n".join([torch.__version__, torch.backends.cpu.get_cpu_capability(), *facts])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def run(case: str, folder: Path) -> str:
    """The losses of a run as text: a line per step, per validation and per evaluation."""
    recipe, *overrides = CASES[case]
    rows = write_hellaswag(folder / "rows", 64, 8)
    out = folder / "run"
    words = ["train", RECIPES.format(recipe), *SETTINGS, *overrides, f"--data.path={rows}", f"--run_dir={out}"]
    for worker in worker_processes(*words, world=4 if case.endswith("pp2_ep2") else 1):
        assert worker.returncode == 0, worker.stderr
    lines = []
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        lines.append(f"step {line['step']} loss {line['loss']!r} grad_norm {line['grad_norm']!r}")
    for line in map(json.loads, (out / "validation.jsonl").read_text().splitlines()):
        lines.append(f"validation {line['step']} loss {line['loss']!r}")
    after = json.loads((out / "evaluation.json").read_text())["hellaswag"]["after"]
    lines.append(f"evaluation acc {after['acc']!r} loss {after['loss']!r}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Record all cases, or those that are named."""
    for case in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as scratch:
            (HERE / f"{case}.txt").write_text(f"processor {processor()}\n{run(case, Path(scratch))}")
        print(case, flush=True)


if __name__ == "__main__":
    main()
