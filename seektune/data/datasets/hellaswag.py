"""HellaSwag: rows from a folder or a download, cleaned as in lm-evaluation-harness."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from seektune.data.chat_format.message import shown
from seektune.data.datasets.dataset import DataCache, DataCard, DataConfig, LoadedSplit, Split, spread_evenly
from seektune.data.datasets.records import records_in, split_files
from seektune.data.question import Question, right_answers
from seektune.data.tokenizer import Tokenizer
from seektune.io.text import check_unicode
from seektune.section import PathValue

TEXTS = ("activity_label", "ctx_a", "ctx_b")
COLUMNS = (*TEXTS, "endings", "label")
"""The columns of the Hub's schema that are used."""


class HellaswagConfig(DataConfig):
    """HellaSwag, or your own rows in its form: a context and four endings, of which the right one is taught."""

    title: ClassVar[str] = "HellaSwag"
    has_questions: ClassVar[bool] = True
    dataset: Literal["hellaswag"] = "hellaswag"
    """Name of the dataset."""
    path: PathValue | None = None
    """Folder with train and validation as .parquet or .jsonl in the Hub's schema; null = fetched and cached."""

    def fetch(self, cache: DataCache) -> None:
        """As `DataConfig.fetch`: without `path`, download from the first source that can be reached."""
        self._locate(cache)

    def load(self, split: Split, tokenizer: Tokenizer, cache: DataCache, limit: int | None = None) -> LoadedSplit:
        """As `DataConfig.load`: the right ending of each row is taught."""
        folder, source = self._locate(cache)
        rows = spread_evenly(read_split(folder, split), limit)
        return LoadedSplit(right_answers(rows, tokenizer), source)

    def questions(self, cache: DataCache, limit: int | None = None, path: Path | None = None) -> list[Question]:
        """As `DataConfig.questions`."""
        place = self._locate(cache)[0] if path is None else path
        rows = read_rows(place) if place.is_file() else read_split(place, "validation")
        return spread_evenly(rows, limit)

    def card(self) -> DataCard:
        """As `DataConfig.card`."""
        taught = "the right endings are taught."
        if self.path is not None:
            name = f"rows in {self.title}'s form"
            return DataCard(self.dataset, name, f"Own {name}: {taught}")
        from seektune.data.datasets.hellaswag_sources import HUB_REPO

        link = f"[{self.title}](https://huggingface.co/datasets/{HUB_REPO})"
        return DataCard(self.dataset, self.title, f"{link}, train split: {taught}", HUB_REPO, "en")

    def _locate(self, cache: DataCache) -> tuple[Path, str]:
        """The folder of the rows and a description of their source."""
        if self.path is not None:
            return self.path, str(self.path)
        # here, because a recipe does not wait for the import of pyarrow
        from seektune.data.datasets.hellaswag_sources import SOURCES, cached

        return cached(cache.folder / self.dataset, SOURCES, COLUMNS, cache.note)


def read_rows(file: Path) -> list[Question]:
    """Rows of one .parquet or .jsonl file, in the form of `read_split`.

    Raises:
        ValueError: naming the file and the row, if it is another kind of file or a row is not as it should be.
    """
    return [row_from_record(record, name) for name, record in records_in(file, COLUMNS, "HellaSwag")]


def read_split(folder: Path, split: Split) -> list[Question]:
    """Rows of a split in a folder, in the Hub's schema (the label may be text or a number), in the order of its files.

    Raises:
        ValueError: naming the file and the row, if a split is missing or empty, a file cannot be read, or a row has
            no four endings or an impossible label.
    """
    rows = [row for file in split_files(folder, split) for row in read_rows(file)]
    if not rows:
        raise ValueError(f"{folder}: the {split} split is empty")
    return rows


def row_from_record(record: Mapping[str, Any], name: str) -> Question:
    """The cleaned row of one record in the Hub's schema; `name` is its source for errors.

    Raises:
        ValueError: naming the row and what is wrong with it.
    """
    for column in COLUMNS:
        if column not in record:
            raise ValueError(f"{name}: no {column}; a row needs {', '.join(COLUMNS)}")
    for column in TEXTS:
        if not isinstance(record[column], str):
            raise ValueError(f"{name}: {column} must be text, not {shown(record[column])}")
    endings = _endings(record["endings"], name)
    context = record["ctx_a"] + " " + record["ctx_b"].capitalize()
    prompt = clean(record["activity_label"] + ": " + context)
    try:
        check_unicode("".join([prompt, *endings]))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Question(prompt, endings, _label(record["label"], name), name)


def clean(text: str) -> str:
    """Text without WikiHow's marks (`[header]`, `[title]`, `[step]`), cleaned as in the harness."""
    text = text.strip().replace(" [title]", ". ")
    return "\n".join(map(_without_marks, text.split("\n"))).replace("  ", " ")


def _without_marks(line: str) -> str:
    # what follows the last bracket is not searched: each opening one there would be followed to the end of the line
    end = line.rfind("]") + 1
    return re.sub(r"\[.*?\]", "", line[:end]) + line[end:]


def _endings(endings: object, name: str) -> tuple[str, ...]:
    if not isinstance(endings, list) or len(endings) != 4:
        count = len(endings) if isinstance(endings, list) else "no list of"
        raise ValueError(f"{name}: a row needs four endings, this one has {count}")
    cleaned = [clean(ending) if isinstance(ending, str) else "" for ending in endings]
    if not all(cleaned):
        raise ValueError(
            f"{name}: ending {cleaned.index('')} is {shown(endings[cleaned.index('')])}, which holds no text"
        )
    return tuple(cleaned)


def _label(label: object, name: str) -> int:
    # a column with a gap comes out of a data frame as floats
    plain = int(label) if isinstance(label, float) and label.is_integer() else label
    if isinstance(label, bool) or str(plain) not in ("0", "1", "2", "3"):
        raise ValueError(f"{name}: label {shown(label)} names none of the four endings; it must be 0, 1, 2 or 3")
    return int(str(plain))
