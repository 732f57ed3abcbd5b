"""The report's sections about evaluations during training: scores by step, and samples side by side."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seektune.io.run_files import EVALUATIONS, SAMPLES
from seektune.train.evaluation_log import read_if_there
from seektune.train.report_html import section, table, texts_table

COLUMNS = 8
"""Steps whose samples are shown; of more, these at even distances, with the first and the last."""


def evaluation_sections(folder: Path) -> Iterator[str]:
    """HTML of a section for each task that ran during training, and for each task of samples.

    Raises:
        ValueError, OSError: a file of the run folder cannot be read.
    """
    for name, records in _by_task(read_if_there(folder / EVALUATIONS)).items():
        labels = list(records[0]["lines"])
        rows = [(f"{record['step']:,}", *(record["lines"].get(label, "") for label in labels)) for record in records]
        yield section(f"{name} during training", table(rows, ("step", *labels)))
    for name, records in _by_task(read_if_there(folder / SAMPLES)).items():
        yield section(name[0].upper() + name[1:], _samples(spread(records)))


def spread(records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """At most `COLUMNS` of the records."""
    if len(records) <= COLUMNS:
        return records
    return [records[i * (len(records) - 1) // (COLUMNS - 1)] for i in range(COLUMNS)]


def _samples(records: Sequence[Mapping[str, Any]]) -> str:
    prompts = [answer["prompt"] for answer in records[-1]["answers"]]
    # a run whose prompts changed when it resumed keeps the answers to its present ones
    columns = [{answer["prompt"]: answer for answer in record["answers"]} for record in records]
    rows = [(prompt, *(_shown(column.get(prompt)) for column in columns)) for prompt in prompts]
    return texts_table(rows, ("prompt", *(f"step {record['step']:,}" for record in records)))


def _shown(answer: Mapping[str, Any] | None) -> str:
    if answer is None:
        return ""
    return answer["answer"] + (" …" if answer["end"] == "length" else "")


def _by_task(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    names = dict.fromkeys(record["task"] for record in records)
    return {name: [record for record in records if record["task"] == name] for name in names}
