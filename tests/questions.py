"""Questions of rows in HellaSwag's form, read without a cache."""

from pathlib import Path

from seektune.data.datasets.hellaswag import question_of
from seektune.data.question import Question
from seektune.data.sources.data_file import checked
from seektune.data.sources.find import files_of
from seektune.data.sources.row import BadRow, SourceRow


def read_split(folder: Path, split: str) -> list[Question]:
    """The questions of a split in a folder; a bad row is a ValueError."""
    return [_question(checked(row._asdict(), file)) for file in files_of(str(folder), split) for row in file.rows()]


def question(record: dict, name: str) -> Question:
    """The question of one record."""
    return _question(SourceRow.of(record, name))


def _question(row: SourceRow | BadRow) -> Question:
    if isinstance(row, BadRow):
        raise ValueError(str(row))
    try:
        return question_of(row)
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from None
