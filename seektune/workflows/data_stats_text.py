"""Statistics of a dataset as lines of text."""

from collections.abc import Iterator, Mapping
from typing import Any

from seektune.io.console import counted, listed, many

BAR = 40
"""Width of the longest bar of the histogram."""


def stats_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The lines that describe a dataset."""
    yield f"{summary['dataset']} ({summary['kind']}, {summary['source']})"
    yield from (f"  {line}" for line in _body(summary))


def _body(summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"{counted(summary['rows'], 'row')}, {counted(summary['examples'], 'example')}, {_tokens(summary)}"
    yield from notes(summary)
    if not summary["examples"]:
        return
    yield ", ".join(f"{name} {value:,}" for name, value in summary["lengths"].items()) + " tokens"
    yield from _histogram(summary["histogram"])
    yield "batch.length   longer examples   tokens cut   fill when packed"
    for row in summary["batch_lengths"]:
        own = " (the recipe's)" if row["length"] == summary["batch_length"] else ""
        yield f"{row['length']:12,}   {row['overlong']:15,}   {row['cut_tokens']:10,}   {row['fill']:15.1%}{own}"
    yield "longest: " + listed([f"{each['name']} ({each['tokens']:,} tokens)" for each in summary["longest"]], most=3)
    yield f"letters: {shares(summary['scripts'])}; of taught texts: {shares(summary['taught_scripts'])}"
    if summary["tool_names"] or summary["tool_calls"]:
        called = [f"{name} ({count:,})" for name, count in summary["tools"]["called"].items()]
        yield f"{counted(summary['tool_names'], 'tool')} described, {counted(summary['tool_calls'], 'call')}"
        yield f"most called: {listed(called)}"


def notes(summary: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about rows that need attention."""
    if summary["limit"] is not None:
        yield f"data.limit {summary['limit']:,}: at most so many rows, spread evenly, are trained on and measured here"
    if summary["bad_rows"]:
        yield f"{counted(summary['bad_rows'], 'bad row')}: {listed(summary['bad'], most=3)}"
    if summary["split_rows"]:
        yield f"{counted(summary['split_rows'], 'row')} became several examples: {summary['why_several']}"
        yield f"{counted(summary['repeated_tokens'], 'token')} at the start of such examples are read more than once"
    if summary["empty_reasoning"]:
        yield (
            f"{counted(summary['empty_reasoning'], 'response')} without reasoning in thinking mode: empty reasoning is "
            "taught there"
        )
    duplicates = summary["duplicates"]
    if duplicates["repeated_rows"]:
        yield f"{_rows_that(duplicates['repeated_rows'], 'repeats', 'repeat')} an earlier one"
    for name, count in duplicates["also_in"].items():
        yield f"{_rows_that(count, 'is', 'are')} also in {name}"
    if summary["tools"]["not_described"]:
        yield f"calls of tools that their row does not describe: {listed(list(summary['tools']['not_described']))}"


def _rows_that(count: int, one: str, several: str) -> str:
    return f"{counted(count, 'row')} {one if count == 1 else several}"


def shares(scripts: Mapping[str, float]) -> str:
    """Scripts with their shares of at least a thousandth."""
    return ", ".join(f"{name} {share:.1%}" for name, share in scripts.items() if share >= 0.001) or "none"


def _tokens(summary: Mapping[str, Any]) -> str:
    share = summary["taught_tokens"] / summary["tokens"] if summary["tokens"] else 0
    return f"{many(summary['tokens'])} tokens, {many(summary['taught_tokens'])} taught ({share:.0%})"


def _histogram(bins: list[dict[str, int]]) -> Iterator[str]:
    most = max(each["examples"] for each in bins)
    for each in bins:
        span = f"{each['start']:,} to {each['stop'] - 1:,}"
        bar = "█" * round(BAR * each["examples"] / most) or ("▏" if each["examples"] else "")
        yield f"{span:>18} tokens {each['examples']:9,} {bar}".rstrip()
