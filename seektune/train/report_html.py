"""HTML of the report: one self-contained file, for small and large screens, light and dark themes."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
$again<title>$title</title>
<style>
:root { --back: #ffffff; --ink: #1f2733; --soft: #5b6675; --faint: #e3e7ed; --card: #f6f8fa; --accent: #2f6fde; }
@media (prefers-color-scheme: dark) {
  :root { --back: #161b22; --ink: #dfe5ee; --soft: #98a3b3; --faint: #2f3843; --card: #1d242d; --accent: #6ea8ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 900px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 38px 0 10px; }
p.lead { color: var(--soft); margin: 0 0 22px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; }
.card { background: var(--card); border: 1px solid var(--faint); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--faint); }
th { font-weight: 600; color: var(--soft); }
td { overflow-wrap: anywhere; }
.texts td, .texts tr > th:first-child { white-space: pre-wrap; min-width: 14rem; font-size: .9rem; }
img { width: 100%; height: auto; border-radius: 8px; border: 1px solid var(--faint); display: block; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: 6px; }
pre { background: var(--card); border: 1px solid var(--faint); border-radius: 8px; padding: 14px; overflow-x: auto;
  font-size: .84rem; line-height: 1.45; }
summary { cursor: pointer; color: var(--accent); }
code { font-size: .92em; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
$body
</main>
</body>
</html>
""")


def page(title: str, lead: str, parts: Iterable[str], refresh: int | None = None) -> str:
    """The whole document; `parts` are HTML, title and lead are text. `refresh` loads it again after so many s."""
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">\n'
    return _PAGE.substitute(title=escape(title), lead=escape(lead), body="\n".join(parts), again=again)


def cards(pairs: Iterable[tuple[str, str]]) -> str:
    """Large numbers with a caption each, from (number, caption)."""
    inside = "".join(
        f'<div class="card"><b>{escape(number)}</b><span>{escape(label)}</span></div>' for number, label in pairs
    )
    return f'<div class="cards">{inside}</div>'


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table of text; each row's first cell is its heading."""
    top = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    return f'<div class="scroll"><table>{top}{"".join(map(_row, rows))}</table></div>'


def texts_table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """A table of longer texts side by side, with their line ends."""
    return f'<div class="texts">{table(rows, head)}</div>'


def section(heading: str, *parts: str) -> str:
    """A heading (text) and its content (HTML)."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def picture(light: bytes, dark: bytes, caption: str) -> str:
    """An embedded PNG in a light and a dark version, chosen by the reader's colour scheme."""
    source = f'<source srcset="{_embed(dark)}" media="(prefers-color-scheme: dark)">'
    image = f'<img src="{_embed(light)}" alt="{escape(caption)}">'
    return f"<figure><picture>{source}{image}</picture><figcaption>{escape(caption)}</figcaption></figure>"


def folded(label: str, text: str) -> str:
    """Preformatted text in a collapsed section."""
    return f"<details><summary>{escape(label)}</summary><pre>{escape(text)}</pre></details>"


def _row(cells: Sequence[str]) -> str:
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{escape(cells[0])}</th>{rest}</tr>'


def _embed(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode("ascii")
