"""Prints tokens of an example as training reads them, coloured by what is taught."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from seektune.data.example import Example
from seektune.data.tokenizer import Tokenizer
from seektune.io.text import printable

TAUGHT = "bold green"
READ = "default"
BEYOND = "red"
"""Colours of tokens: counted by the loss, only read, beyond the end of the row."""
SEAM = "|"
"""Between two tokens."""


def show_example(example: Example, length: int, tokenizer: Tokenizer, paper: Console) -> None:
    """Print an example with the place where a row of `length` tokens ends, if it is longer."""
    tokens = [int(token) for token in example.tokens]
    taught = [bool(each) for each in example.taught]
    show_document(tokens, taught, length if len(tokens) > length else None, tokenizer, paper)


def show_document(
    tokens: Sequence[int], taught: Sequence[bool], cut: int | None, tokenizer: Tokenizer, paper: Console
) -> None:
    """Print a document as text and as tokens; the row ends before token `cut`."""
    paper.print(Text("  text    " + printable(tokenizer.decode(tokens)).replace("\n", "\n          ")))
    line = Text("  tokens  ")
    for i, (piece, style) in enumerate(_pieces(tokens, taught, tokenizer)):
        if i == cut:
            line.append(f" ✂ batch.length {cut} ✂ ", BEYOND)
        elif i:
            line.append(SEAM, "dim")
        beyond = cut is not None and i >= cut
        line.append(piece if _colours(paper) or style != TAUGHT else f"«{piece}»", BEYOND if beyond else style)
    paper.print(line)


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
