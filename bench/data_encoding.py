"""Measures the encoding of text and conversations, for bench/data.py: in a program of its own, as workers import what
their parent's program imports, and `seektune data prepare` imports little.

    PYTHONPATH=. python bench/data_encoding.py [--shared ../shared/data]
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from made_rows import RepeatedRows

from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings
from seektune.data.datasets.text import TextConfig
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowSource
from seektune.data.store.prepare import prepare
from seektune.data.store.shard import ShardJob
from seektune.data.store.workers import run_in_processes

VOCABULARY = 129280


@dataclass(frozen=True)
class Passages(RowSource):
    """A text in passages of 4,000 characters."""

    file: Path
    title: str = "passages"
    identity: str = "passages"

    def count(self) -> int:
        """As `RowSource.count`."""
        return self.file.stat().st_size // 4000

    def read(self, start: int, stop: int) -> Iterator[SourceRow | BadRow]:
        """As `RowSource.read`."""
        text = self.file.read_text(encoding="utf-8")
        for i in range(start, stop):
            yield SourceRow({"text": text[4000 * i : 4000 * i + 4000]}, f"passage {i}", i)


def main() -> None:
    """Measure and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="has text and chat")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(encoding(options.shared, Path(scratch))))


def encoding(shared: Path, cache: Path) -> dict[str, Any]:
    """Tokens per second for text and conversations, in one process and in two workers."""
    text = TextConfig(kind="text")
    chat = ChatConfig(kind="chat", path=str(shared / "chat"))
    sources: dict[str, tuple[DataConfig, RowSource, int]] = {
        "text": (text, Passages(shared / "text" / "tinyshakespeare.txt"), 4_000),
        "conversations": (chat, chat.source("train", DataCache(cache, lambda note: None)), 8_000),
    }
    found: dict[str, Any] = {}
    for name, (dataset, source, rows) in sources.items():
        encoder = dataset.encoder(EncodeSettings(VOCABULARY))
        source.count()
        for workers in (1, 2):
            shutil.rmtree(cache / "prepared", ignore_errors=True)
            began = cpu_seconds()
            wall = perf_counter()
            run = one_process if workers == 1 else lambda jobs, done: run_in_processes(jobs, done, 2)
            store = prepare(RepeatedRows(rows, source=source), encoder, cache, name, run=run)
            found[f"{name}, {workers} process{'es' if workers > 1 else ''}"] = {
                "per two CPU seconds": round(2 * store.manifest.tokens / (cpu_seconds() - began)),
                "per second on the clock": round(store.manifest.tokens / (perf_counter() - wall)),
                "tokens": store.manifest.tokens,
            }
    return found


def one_process(jobs: Sequence[ShardJob], done: Any) -> list[Any]:
    """Run jobs here."""
    return [job.run() for job in jobs]


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
