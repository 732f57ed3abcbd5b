"""Prints tokens of an example as training reads them, coloured by what is taught."""

from collections.abc import Iterator, Sequence
from itertools import islice

from rich.console import Console
from rich.text import Text

from seektune.data.example import Example
from seektune.data.tokenizer import Tokenizer
from seektune.io.console import counted
from seektune.io.text import printable

TAUGHT = "bold green"
READ = "default"
BEYOND = "red"
"""Colours of tokens: counted by the loss, only read, beyond the end of the row."""
SEAM = "|"
"""Between two tokens."""
LONG = 4000
"""Tokens of a document that is shown in parts."""
AROUND = 150
"""Tokens that are shown on each side of a place."""
MOST_EDGES = 20
"""Beginnings and ends of taught parts that are shown."""


def show_example(example: Example, length: int, tokenizer: Tokenizer, paper: Console) -> None:
    """Print an example with the place where a row of `length` tokens ends, if it is longer."""
    tokens = [int(token) for token in example.tokens]
    taught = [bool(each) for each in example.taught]
    show_document(tokens, taught, length if len(tokens) > length else None, tokenizer, paper)


def show_document(
    tokens: Sequence[int], taught: Sequence[bool], cut: int | None, tokenizer: Tokenizer, paper: Console
) -> None:
    """Print a document as text and as tokens; the row ends before token `cut`.

    Of a long document, the tokens at both ends, around the cut and around the first taught parts are shown.
    """
    line = Text("  tokens  ")
    text = ""
    end = 0
    for start, stop in shown_parts(taught, cut):
        if start > end:
            gap = f" … {counted(start - end, 'token')} … "
            text += gap
            line.append(gap, "dim")
        text += printable(tokenizer.decode(tokens[start:stop]))
        _append(line, range(start, stop), (tokens, taught), cut, tokenizer, paper)
        end = stop
    paper.print(Text("  text    " + text.replace("\n", "\n          ")))
    paper.print(line)


def shown_parts(taught: Sequence[bool], cut: int | None) -> list[tuple[int, int]]:
    """Start and end of the parts of a document that are shown: all of it, unless it is long."""
    if len(taught) <= LONG:
        return [(0, len(taught))]
    edges = list(islice((i for i in range(1, len(taught)) if taught[i] != taught[i - 1]), MOST_EDGES))
    parts: list[tuple[int, int]] = []
    for place in sorted({0, len(taught), *edges, *([] if cut is None else [cut])}):
        start = max(place - AROUND, 0)
        stop = min(place + AROUND, len(taught))
        if parts and start <= parts[-1][1]:
            parts[-1] = (parts[-1][0], stop)
        else:
            parts.append((start, stop))
    return parts


def _append(
    line: Text,
    places: range,
    document: tuple[Sequence[int], Sequence[bool]],
    cut: int | None,
    tokenizer: Tokenizer,
    paper: Console,
) -> None:
    """Append the tokens at some places of a document."""
    part = slice(places.start, places.stop)
    for i, (piece, style) in zip(places, _pieces(document[0][part], document[1][part], tokenizer), strict=True):
        if i == cut:
            line.append(f" ✂ batch.length {cut} ✂ ", BEYOND)
        elif i > places.start:
            line.append(SEAM, "dim")
        beyond = cut is not None and i >= cut
        line.append(piece if _colours(paper) or style != TAUGHT else f"«{piece}»", BEYOND if beyond else style)


def _pieces(tokens: Sequence[int], taught: Sequence[bool], tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Each token's text, with visible spaces, and its colour; a character of several tokens is � in each."""
    for token, is_taught in zip(tokens, taught, strict=True):
        text = printable(tokenizer.decode([token])).replace(" ", "·").replace("\n", "⏎")
        yield text, TAUGHT if is_taught else READ


def legend(paper: Console) -> Text:
    """What the colours or marks mean."""
    if not _colours(paper):
        return Text("«taught», read; · is a space, ⏎ a line break")
    return Text.assemble(("taught", TAUGHT), ", ", ("read", READ), "; · is a space, ⏎ a line break")


def _colours(paper: Console) -> bool:
    return paper.is_terminal and not paper.no_color
