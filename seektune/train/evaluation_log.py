"""Results of evaluations during training: evaluations.jsonl and samples.jsonl, which exist once they have a line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seektune.io.jsonl import JsonlWriter, read_records
from seektune.io.run_files import EVALUATIONS, SAMPLES


class EvaluationLog:
    """The two files of a run folder; results are rare, so each is opened for a line."""

    def __init__(self, folder: Path):
        self._folder = folder

    def evaluation(self, step: int, name: str, lines: Sequence[tuple[str, str]], values: Mapping[str, float]) -> None:
        """Append a task's result.

        Raises:
            OSError: it cannot be written.
        """
        self._append(EVALUATIONS, {"step": step, "task": name, "lines": dict(lines), "values": dict(values)})

    def samples(self, step: int, name: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """Append answers to fixed prompts, a line for all.

        Raises:
            OSError: they cannot be written.
        """
        self._append(SAMPLES, {"step": step, "task": name, "answers": list(answers)})

    def done(self) -> set[tuple[int, str]]:
        """Step and name of all results."""
        return {
            (line["step"], line["task"])
            for name in (EVALUATIONS, SAMPLES)
            for line in read_if_there(self._folder / name)
        }

    def rewind(self, last_step: int) -> None:
        """Remove the results of later steps."""
        for name in (EVALUATIONS, SAMPLES):
            if (self._folder / name).exists():
                with JsonlWriter(self._folder / name) as lines:
                    lines.rewind(last_step)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with JsonlWriter(self._folder / name) as lines:
            lines.append(record)


def read_if_there(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none if it does not exist.

    Raises:
        ValueError, OSError: as `read_records`.
    """
    return read_records(path) if path.exists() else []
