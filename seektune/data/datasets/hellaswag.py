"""HellaSwag: rows from a folder or a download, cleaned as in lm-evaluation-harness."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from seektune.data.chat_format.message import shown
from seektune.data.datasets.dataset import DataCache, DataCard, EncodeSettings, RowEncoder, Split
from seektune.data.datasets.rows import RowsConfig
from seektune.data.example import Example
from seektune.data.question import Question, right_answers
from seektune.data.sources.files import FileSource
from seektune.data.sources.row import BadRow, SourceRow
from seektune.io.text import check_unicode

TEXTS = ("activity_label", "ctx_a", "ctx_b")
COLUMNS = (*TEXTS, "endings", "label")
"""The columns of the Hub's schema that are used."""


class HellaswagConfig(RowsConfig):
    """HellaSwag, or your own rows in its form: a context and four endings, of which the right one is taught."""

    title: ClassVar[str] = "HellaSwag"
    has_questions: ClassVar[bool] = True
    kind: Literal["hellaswag"] = "hellaswag"
    """Kind of the rows."""

    def fetch(self, cache: DataCache) -> None:
        """As `DataConfig.fetch`: without `path` and `hub`, download from the first source that can be reached."""
        super().fetch(cache)
        if self._is_fetched:
            self._download(cache)

    def source(self, split: Split, cache: DataCache) -> FileSource:
        """As `DataConfig.source`."""
        if not self._is_fetched:
            return super().source(split, cache)
        folder, title = self._download(cache)
        found = self.model_copy(update={"path": str(folder)}).source(split, cache)
        return replace(found, title=title)

    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.encoder`: the right ending of each row is taught."""
        return QuestionEncoder(settings, f"hellaswag 1, vocabulary {settings.vocab_size}")

    def questions(self, cache: DataCache, limit: int | None = None, path: Path | None = None) -> list[Question]:
        """As `DataConfig.questions`."""
        section = self if path is None else HellaswagConfig(path=str(path))
        rows, place = section.rows("train" if path is not None and path.is_file() else "validation", cache, limit)
        if not rows:
            raise ValueError(f"{place}: no rows")
        return self.good([_question_or_reason(row) for row in rows], cache.note)

    def card(self) -> DataCard:
        """As `DataConfig.card`."""
        taught = "the right endings are taught."
        if not self._is_fetched:
            name = f"rows in {self.title}'s form"
            return DataCard(self.kind, name, f"Own {name}: {taught}", self.hub)
        from seektune.data.datasets.hellaswag_sources import HUB_REPO

        link = f"[{self.title}](https://huggingface.co/datasets/{HUB_REPO})"
        return DataCard(self.kind, self.title, f"{link}, train split: {taught}", HUB_REPO, "en")

    @property
    def _is_fetched(self) -> bool:
        """Whether the rows are those of the benchmark, not the user's own."""
        return self.path is None and self.hub is None

    def _download(self, cache: DataCache) -> tuple[Path, str]:
        """The folder of the benchmark's rows and a description of where they came from."""
        # here, because a recipe does not wait for the import of pyarrow
        from seektune.data.datasets.hellaswag_sources import SOURCES, cached

        return cached(cache.folder / self.kind, SOURCES, COLUMNS, cache.note)


@dataclass(frozen=True)
class QuestionEncoder(RowEncoder):
    """Encodes rows in HellaSwag's form: the right ending is taught."""

    settings: EncodeSettings
    identity: str

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        """As `RowEncoder.encode`."""
        found = [_question_or_reason(row) for row in rows]
        questions = [each for each in found if isinstance(each, Question)]
        examples = iter(right_answers(questions, self.settings.tokenizer))
        return [each if isinstance(each, BadRow) else [next(examples)] for each in found]


def _question_or_reason(row: SourceRow) -> Question | BadRow:
    try:
        return question_of(row)
    except ValueError as error:
        return BadRow(row.place, str(error))


def question_of(row: SourceRow) -> Question:
    """The cleaned question of a row in the Hub's schema.

    Raises:
        ValueError: what is wrong with the row, without its place.
    """
    for column in COLUMNS:
        if column not in row.values:
            raise ValueError(f"no {column}; a row needs {', '.join(COLUMNS)}")
    for column in TEXTS:
        if not isinstance(row.values[column], str):
            raise ValueError(f"{column} must be text, not {shown(row.values[column])}")
    endings = _endings(row.values["endings"])
    context = row.values["ctx_a"] + " " + row.values["ctx_b"].capitalize()
    prompt = clean(row.values["activity_label"] + ": " + context)
    check_unicode("".join([prompt, *endings]))
    return Question(prompt, endings, _label(row.values["label"]), row.place)


def clean(text: str) -> str:
    """Text without WikiHow's marks (`[header]`, `[title]`, `[step]`), cleaned as in the harness."""
    text = text.strip().replace(" [title]", ". ")
    return "\n".join(map(_without_marks, text.split("\n"))).replace("  ", " ")


def _without_marks(line: str) -> str:
    # what follows the last bracket is not searched: each opening one there would be followed to the end of the line
    end = line.rfind("]") + 1
    return re.sub(r"\[.*?\]", "", line[:end]) + line[end:]


def _endings(endings: object) -> tuple[str, ...]:
    if not isinstance(endings, list) or len(endings) != 4:
        count = len(endings) if isinstance(endings, list) else "no list of"
        raise ValueError(f"a row needs four endings, this one has {count}")
    cleaned = [clean(ending) if isinstance(ending, str) else "" for ending in endings]
    if not all(cleaned):
        raise ValueError(f"ending {cleaned.index('')} is {shown(endings[cleaned.index('')])}, which holds no text")
    return tuple(cleaned)


def _label(label: object) -> int:
    # a column with a gap comes out of a data frame as floats
    plain = int(label) if isinstance(label, float) and label.is_integer() else label
    if isinstance(label, bool) or str(plain) not in ("0", "1", "2", "3"):
        raise ValueError(f"label {shown(label)} names none of the four endings; it must be 0, 1, 2 or 3")
    return int(str(plain))
