"""Everything that is measured on one GPU, in one command of at most eight minutes; it writes each part as it is done.

`python bench/gpu_all.py --out gpu.json` needs a checkout and a Python with torch, Triton and the packages that come
with them on GPU machines (safetensors, PyYAML, psutil, huggingface_hub); no installation, network or data. `--list`
prints the parts in order of importance with their estimated seconds; those that do not fit the budget are skipped and
recorded as such, a part that is cut short as `partial`, and one that fails with its error and exit code 1.
`--against FILE` compares with an earlier result.
`--device cpu --tiny` runs the same flow at toy sizes; `TRITON_INTERPRET=1` then runs Triton kernels.

The result of the last run on a GPU is bench/gpu.json; docs/performance.md has its numbers (`--tables FILE` prints the
tables; a test compares them), and `seektune plan --measured FILE` plans with its rates.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from bench.gpu.compare import compared, lines  # noqa: E402
from bench.gpu.part import Bench, Part  # noqa: E402
from bench.gpu.runner import Outcome, run_parts  # noqa: E402
from bench.gpu.table import PARTS  # noqa: E402
from bench.gpu.tables import tables  # noqa: E402
from seektune.io.atomic import write_atomically  # noqa: E402

BUDGET = 450.0
"""Seconds; the rest of eight minutes is for starting and for the part that runs over its estimate."""


def main() -> None:
    """Measure and write, or print what was asked for."""
    options = _options()
    if options.tables is not None:
        print("\n\n".join(tables(options.tables)))
        return
    parts = chosen(options.parts)
    if options.list:
        print("\n".join(f"{part.seconds:5g} s  {part.name}" for part in parts))
        return
    # processes that measure find the same packages
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    writer = Writer(options.out, header(options.device, options.tiny, options.budget), options.against)
    run_parts(parts, Bench(options.device, options.tiny), options.budget, writer.add)
    print(f"{writer.summary()}; written to {options.out}")
    sys.exit(1 if writer.count("failed") else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the result; replaced after every part")
    parser.add_argument("--budget", type=_seconds, default=BUDGET, help="seconds for all parts")
    parser.add_argument("--parts", default=None, help="names, or beginnings of names, separated by semicolons")
    parser.add_argument("--list", action="store_true", help="print the parts and their estimated seconds")
    parser.add_argument(
        "--against", type=_result, default=None, metavar="FILE", help="an earlier result to compare with"
    )
    parser.add_argument("--tables", type=_result, default=None, metavar="FILE", help="print the tables of a result")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    options = parser.parse_args()
    measures = options.tables is None and not options.list
    if measures and options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --tiny runs the same flow at toy sizes")
    if measures and not options.out.absolute().parent.is_dir():
        parser.error(f"--out: the folder {options.out.parent} does not exist")
    return options


def _seconds(text: str) -> float:
    """A positive number of seconds."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _result(text: str) -> dict[str, Any]:
    """A result of this command, read from a file."""
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))
        if isinstance(found["parts"], dict):
            return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text} is not a result of this benchmark: {error}") from None
    raise argparse.ArgumentTypeError(f"{text} is not a result of this benchmark")


def chosen(names: str | None) -> list[Part]:
    """The parts whose name begins with one of these, and the ceilings, of which the others are shares.

    Raises:
        SystemExit: a name begins none.
    """
    asked = [""] if names is None else [name.strip() for name in names.split(";")]
    for name in asked:
        if not any(part.name.startswith(name) for part in PARTS):
            raise SystemExit(f"no part begins with {name!r}; --list prints the parts")
    return [part for part in PARTS if part.name.startswith(("ceilings", *asked))]


def header(device: str, tiny: bool, budget: float) -> dict[str, Any]:
    """What was measured on."""
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "date": date.today().isoformat(),
        "capability": list(torch.cuda.get_device_capability()) if on_gpu else None,
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if on_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tiny": tiny,
        "budget_s": budget,
    }


@dataclass
class Writer:
    """Collects outcomes, and writes and prints each at once."""

    file: Path
    header: dict[str, Any]
    before: dict[str, Any] | None = None
    parts: dict[str, Outcome] = field(default_factory=dict)
    begin: float = field(default_factory=monotonic)

    def add(self, name: str, outcome: Outcome) -> None:
        """Add the outcome of a part."""
        self.parts[name] = outcome
        result = {**self.header, "spent_s": round(monotonic() - self.begin, 1), "parts": self.parts}
        if self.before is not None:
            result["against"] = compared(result, self.before)
        write_atomically(self.file, json.dumps(result, indent=1) + "\n")
        print(f"{outcome['status']:8}{outcome['seconds']:6.1f} s  {name}", flush=True)
        shown = outcome.get("error") or outcome.get("reason") or json.dumps(outcome["found"])
        print(f"         {shown}", flush=True)
        for line in lines({k: v for k, v in result.get("against", {}).items() if k.startswith(f"{name} /")}):
            print(f"         {line}", flush=True)

    def summary(self) -> str:
        """How many parts ended how."""
        return ", ".join(f"{self.count(status)} {status}" for status in ("done", "partial", "failed", "skipped"))

    def count(self, status: str) -> int:
        """How many parts ended so."""
        return sum(outcome["status"] == status for outcome in self.parts.values())


if __name__ == "__main__":
    main()
