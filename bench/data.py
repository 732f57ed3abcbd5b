"""Measures the data path: encoding, packing, the start of a prepared run, its memory, and the data of a large step.

    PYTHONPATH=. python bench/data.py [--rows 10000000] [--shared ../shared/data]

Speeds of encoding are of bench/data_encoding.py: tokens per CPU second of the process and its workers, times two, which
is what two idle cores would do, and tokens per second of the clock. Made rows have 20 to 80 tokens; their shards are
one shard under many names, so that ten million take no hour.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from made_rows import MadeRows

from seektune.data.config import BatchConfig
from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.dataset import DataCache, EncodeSettings, RowEncoder
from seektune.data.datasets.hellaswag import HellaswagConfig
from seektune.data.example import Example
from seektune.data.loader import CHUNK, Loader
from seektune.data.mixing import Mixture
from seektune.data.packing import RowPlan
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.step_data import Share
from seektune.data.store.index import COLUMNS, column_file
from seektune.data.store.manifest import MANIFEST, Manifest, read_manifest
from seektune.data.store.prepare import MOST_SHARDS, prepare
from seektune.data.store.prepared import PreparedExamples
from seektune.data.store.shard import ShardJob, shard_path
from seektune.data.store.split import Stores, examples_of
from seektune.planner.hardware import known_gpu
from seektune.recipe.load import load_recipe
from seektune.workflows.plan import PlanOptions, take_plan

RESULT = Path(__file__).with_suffix(".json")
RECIPE = "examples/llm_finetune/deepseek_v4/deepseek_v4_flash_hellaswag.yaml"
RANKS = 128
LENGTH = 4096
ROWS = 1024
"""Of a step: 4,194,304 tokens."""
VOCABULARY = 129280
STEPS = 8
HELD_OUT = 100_000
"""Held-out rows of a start."""


class MadeEncoder(RowEncoder):
    """Rows of 20 to 80 tokens, the last half taught."""

    identity = "made"

    def __init__(self) -> None:
        self._examples = [Example(list(range(n)), [2 * i >= n for i in range(n)], "made") for n in range(20, 81)]

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        """As `RowEncoder.encode`."""
        return [[self._examples[row.digest * 7919 % 61]] for row in rows]


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="has text, chat and hellaswag")
    parser.add_argument("--start", type=Path, help="for itself: a prepared folder whose start is measured")
    parser.add_argument("--held-out", type=Path, help="for itself: that of the held-out rows")
    options = parser.parse_args()
    if options.start is not None:
        print(json.dumps(start_here(options.start, options.held_out)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        result = {
            "encoding, tokens": encoding(options.shared),
            "filled by packing": packing(options.shared, cache),
            "start of a prepared run": {f"{rows:,} rows": started(cache, rows) for rows in (100_000, options.rows)},
            "data of a step": large_step(made_store(cache, options.rows)),
        }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def encoding(shared: Path) -> dict[str, Any]:
    """Tokens per second for text and conversations, in one process and in two workers; by a program of its own."""
    command = [sys.executable, str(Path(__file__).with_name("data_encoding.py")), f"--shared={shared}"]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    print(found, flush=True)
    return found


def packing(shared: Path, cache: Path) -> dict[str, Any]:
    """The share of rows that is filled, and the CPU time of packing the documents of a step."""
    chat = ChatConfig(kind="chat", path=str(shared / "chat"))
    hellaswag = HellaswagConfig(path=str(shared / "hellaswag"))
    found: dict[str, Any] = {}
    for dataset, length in ((hellaswag, 2048), (chat, 4096)):
        data = DataCache(cache, print)
        source = dataset.source("train", data)
        store = prepare(source, dataset.encoder(EncodeSettings(VOCABULARY)), cache, dataset.kind)
        loader = Loader(Mixture([store], seed=0), BatchConfig(global_size=64, length=length, pack=True), pad_id=2)
        plans = [loader.next_rows() for _ in range(max(1, store.manifest.tokens // length // 64))]
        tokens = sum(int(store.lengths[plan.numbers].sum()) for plan in plans)
        found[f"{dataset.kind} at {length}"] = round(tokens / (length * sum(map(len, plans))), 4)
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(6, 1, 50_000).astype(int), 1, LENGTH)
    began = process_time()
    for start in range(0, len(lengths), CHUNK):
        part = lengths[start : start + CHUNK]
        RowPlan.packed(np.arange(len(part)), part, LENGTH, (0,))
    found["milliseconds for 50,000 documents"] = round(1000 * (process_time() - began), 1)
    return found


def made_store(cache: Path, rows: int) -> PreparedExamples:
    """Prepared made rows: one shard under many names, and an index of its own for each."""
    folder = cache / f"made-{rows}"
    size = -(-rows // MOST_SHARDS)
    if not (folder / MANIFEST).exists():
        folder.mkdir()
        record = ShardJob(MadeRows(size), MadeEncoder(), folder, 0, 0, size, strict=True).run()
        for number in range(1, MOST_SHARDS):
            os.link(shard_path(folder, 0), shard_path(folder, number))
        numbers = np.arange(size)
        lengths = 20 + numbers * 7919 % 61
        columns = {"lengths": lengths, "counted": lengths // 2, "rows": numbers, "digests": numbers}
        columns["weights"] = np.ones(size)
        for name, dtype in COLUMNS.items():
            with column_file(folder / f"{name}.npy", dtype, size * MOST_SHARDS) as write:
                for number in range(MOST_SHARDS):
                    write(columns[name] + number * size * (name in ("rows", "digests")))
        Manifest.of("made", "made rows", size * MOST_SHARDS, 80, [record] * MOST_SHARDS).write(folder)
    return open_made(folder)


def open_made(folder: Path) -> PreparedExamples:
    """The made rows of a folder."""
    manifest = read_manifest(folder, "made")
    assert manifest is not None
    return PreparedExamples(folder, manifest)


def started(cache: Path, rows: int) -> dict[str, Any]:
    """Seconds and memory of processes that open prepared rows and take steps: the first chooses the rows, as `data
    prepare` does at its end; the second is how a run starts."""
    command = [
        *(sys.executable, __file__, f"--start={made_store(cache, rows).folder}"),
        f"--held-out={made_store(cache, HELD_OUT).folder}",
    ]
    first, second = (json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(2))
    print(rows, first, second, flush=True)
    return {"choosing the rows": first, "start": second}


def start_here(folder: Path, held_out: Path) -> dict[str, Any]:
    """Open prepared rows in this process and take steps of 64 rows."""
    before = memory()
    began = process_time()
    wall = perf_counter()
    store = open_made(folder)
    batch = BatchConfig(global_size=64, length=LENGTH, pack=True)
    stores: Stores = {"train": store, "validation": open_made(held_out)}
    split = examples_of(HellaswagConfig(), "train", stores, batch)
    loader = Loader(Mixture([split.examples], seed=0), batch, pad_id=2)
    loader.next_step()
    found = {"CPU seconds": round(process_time() - began, 2), "seconds": round(perf_counter() - wall, 2)}
    for _ in range(STEPS * 8):
        loader.next_step()
    after = memory()
    return found | {
        "own MB": round((after[0] - before[0]) / 1e6),
        "mapped MB": round((after[1] - before[1]) / 1e6),
        "whole process MB at the most": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def memory() -> tuple[int, int]:
    """Bytes of this process's own memory, and of mapped files that are resident, which other processes share."""
    status = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith("Rss")}
    return 1000 * kilobytes["RssAnon"], 1000 * kilobytes["RssFile"]


def large_step(store: PreparedExamples) -> dict[str, Any]:
    """CPU seconds of a process for the data of a step on many ranks, next to the planned time of the step."""
    batch = BatchConfig(global_size=ROWS, micro_size=1, length=LENGTH, pack=True)
    loader = Loader(Mixture([store], seed=0), batch, pad_id=2, share=Share(5, RANKS))
    step = loader.next_step()
    began = process_time()
    for _ in range(STEPS):
        step = loader.next_step()
    seconds = (process_time() - began) / STEPS
    planned = planned_seconds()
    return {
        "ranks": RANKS,
        "tokens": step.tokens,
        "documents": round(step.tokens / 50),
        "own micro-batches": len(step.batches),
        "CPU seconds of a process": round(seconds, 3),
        "planned seconds of the step (V4-Flash, 128 H100, seektune plan)": round(planned, 1),
        "share of the step": round(seconds / planned, 4),
    }


def planned_seconds() -> float:
    """The time of a step by `seektune plan`; its assumptions are in docs/planning.md."""
    changes = [f"--batch.global_size={ROWS}", f"--batch.length={LENGTH}", "--batch.pack=true"]
    report, _ = take_plan(load_recipe(Path(RECIPE), changes), known_gpu("h100-80gb", RANKS), PlanOptions())
    return float(report.to_dict()["time"]["seconds"])


if __name__ == "__main__":
    main()
