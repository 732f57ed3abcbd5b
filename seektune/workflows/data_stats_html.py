"""Statistics of datasets as one HTML page."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from seektune.io.console import many
from seektune.train.report_html import cards, page, section, table
from seektune.workflows.data_stats_text import notes, shares

WIDTH = 860
HEIGHT = 180


def stats_page(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The page of all datasets; it needs no network."""
    rows = sum(summary["rows"] for summary in summaries)
    tokens = sum(summary["tokens"] for summary in summaries)
    lead = f"{rows:,} rows, {many(tokens)} tokens in {len(summaries)} dataset{'' if len(summaries) == 1 else 's'}"
    return page("Training data", lead, (part for summary in summaries for part in _dataset(summary)))


def _dataset(summary: Mapping[str, Any]) -> Iterator[str]:
    heading = f"{summary['dataset']} ({summary['kind']}, {summary['source']})"
    numbers = [
        (f"{summary['rows']:,}", "rows"),
        (f"{summary['examples']:,}", "examples"),
        (many(summary["tokens"]), "tokens"),
        (many(summary["taught_tokens"]), "taught tokens"),
    ]
    remarks = "".join(f"<li>{escape(line)}</li>" for line in notes(summary))
    yield section(heading, cards(numbers), f"<ul>{remarks}</ul>" if remarks else "")
    if not summary["examples"]:
        return
    lengths = [(name, f"{value:,} tokens") for name, value in summary["lengths"].items()]
    yield section("Lengths of examples", _bars(summary["histogram"]), table(lengths))
    head = ("batch.length", "longer examples", "tokens cut", "fill when packed")
    rows = [
        (f"{row['length']:,}", f"{row['overlong']:,}", f"{row['cut_tokens']:,}", f"{row['fill']:.1%}")
        for row in summary["batch_lengths"]
    ]
    yield section("Row lengths", table(rows, head))
    yield section(
        "Longest examples", table([(each["name"], f"{each['tokens']:,} tokens") for each in summary["longest"]])
    )
    texts = [("all texts", shares(summary["scripts"])), ("taught texts", shares(summary["taught_scripts"]))]
    yield section("Letters by script", table(texts))
    if summary["tool_names"] or summary["tool_calls"]:
        yield section("Tools", table(_tools(summary["tools"]), ("tool", "rows that describe it", "calls")))
    if summary["bad"]:
        yield section("Bad rows", table([(line,) for line in summary["bad"]]))


def _tools(tools: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, str]]:
    names = {**tools["called"], **tools["described"]}
    return [(name, f"{tools['described'].get(name, 0):,}", f"{tools['called'].get(name, 0):,}") for name in names]


def _bars(bins: Sequence[Mapping[str, int]]) -> str:
    """A histogram as SVG."""
    most = max(each["examples"] for each in bins)
    step = WIDTH / len(bins)
    parts = []
    for i, each in enumerate(bins):
        height = HEIGHT * each["examples"] / most
        label = f"{each['start']:,} to {each['stop'] - 1:,} tokens: {each['examples']:,}"
        parts.append(
            f'<rect x="{i * step + 1:.1f}" y="{HEIGHT - height:.1f}" width="{step - 2:.1f}" height="{height:.1f}" '
            f'fill="var(--accent)"><title>{label}</title></rect>'
            f'<text x="{i * step + 1:.1f}" y="{HEIGHT + 14}" font-size="10" fill="var(--soft)">{each["start"]:,}</text>'
        )
    view = f'viewBox="0 0 {WIDTH} {HEIGHT + 20}" width="100%" role="img" aria-label="histogram of lengths in tokens"'
    return f"<svg {view}>{''.join(parts)}</svg>"
