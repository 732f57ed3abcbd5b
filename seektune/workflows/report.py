"""The command `report`: writes the report of a run again, compares runs, or serves the report of one that continues."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seektune.io.atomic import refuse_existing, write_atomically
from seektune.io.console import say
from seektune.io.run_files import RECIPE, REPORT
from seektune.recipe.document import read_document
from seektune.train.comparison import ComparedRun, comparison_page
from seektune.train.report import write_report
from seektune.train.report_text import read_texts
from seektune.workflows.live_report import LiveReport, serve_report

COMPARISON = Path("comparison.html")


def report(runs: Sequence[Path], out: Path | None) -> None:
    """Write the report of one run into its folder, or a comparison of several to a new file.

    Raises:
        ValueError: a folder holds no run, or one that has not finished, or the file exists.
        OSError: a file cannot be read or written.
    """
    for folder in runs:
        _check_run(folder)
    if len(runs) > 1:
        target = out or COMPARISON
        refuse_existing(target)
        names = _names(runs)
        compared = [
            ComparedRun.read(folder, name, dict(_flat(read_document(folder / RECIPE).plain())))
            for folder, name in zip(runs, names, strict=True)
        ]
        write_atomically(target, comparison_page(compared))
        say(f"comparison: {target}")
        return
    (folder,) = runs
    if out is not None:
        raise ValueError("--out is for a comparison of several runs; the report of one is written into its folder")
    if not (folder / REPORT).exists():
        raise ValueError(f"{folder} holds a run that has not finished; --live shows its report")
    say(f"report: {write_report(folder, read_texts(folder))}")


def live(runs: Sequence[Path], port: int, refresh: int) -> None:
    """Serve the report of a run on this machine until Ctrl-C; the page is made from the files as they are.

    Raises:
        ValueError: there are several runs, or the folder holds none.
        OSError: the port is in use.
    """
    if len(runs) > 1:
        raise ValueError("--live shows one run; without it, several are compared")
    (folder,) = runs
    _check_run(folder)
    serve_report(LiveReport(folder, refresh), port)


def _check_run(folder: Path) -> None:
    if not (folder / RECIPE).is_file():
        raise ValueError(f"{folder} is not a run folder: it has no {RECIPE}")


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where two have the same."""
    names = [folder.absolute().name for folder in runs]
    return names if len(set(names)) == len(names) else [str(folder) for folder in runs]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
