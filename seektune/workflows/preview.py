"""The command `data preview`: prints a row as training reads it: taught tokens, document boundaries, padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from seektune.data.datasets.dataset import DataCache
from seektune.data.example import Example
from seektune.data.loader import Loader, micro_batches
from seektune.data.packing import Row, fitting
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.io.console import counted, say
from seektune.io.text import on_one_line, printable
from seektune.recipe.recipe import Recipe
from seektune.run.build import read_config
from seektune.sequence import IGNORE_INDEX

TAUGHT = "bold green"
READ = "default"
BEYOND = "red"
"""Colours of tokens: counted by the loss, only read, beyond the end of the row."""
SEAM = "|"
"""Between two tokens."""


@dataclass(frozen=True)
class RowPlace:
    """A row and its position in training."""

    step: int
    micro_batch: int
    documents: Row
    tokens: list[int]
    taught: list[bool]
    """Whether the loss counts each token."""


def preview(recipe: Recipe, row: int, cache_dir: Path) -> None:
    """Print row number `row` (from 0) in training order.

    Where an example does not fit into a row and the recipe refuses that, the longest is shown with the place where the
    row ends.

    Raises:
        ValueError: the recipe or data is invalid, or an example is too long.
        OSError: the rows are not cached and cannot be downloaded.
    """
    tokenizer = load_tokenizer(read_config(recipe.model).vocab_size)
    loaded = recipe.datasets[0].load("train", tokenizer, DataCache(cache_dir, say))
    examples = loaded.examples
    say(f"{recipe.datasets[0].title}: {len(examples):,} train rows from {loaded.source}")
    paper = Console(highlight=False, soft_wrap=True)
    try:
        kept, left_out = fitting(examples, recipe.batch.length, recipe.batch.overlong)
    except ValueError:
        _show_overlong(max(examples, key=lambda each: len(each.tokens)), recipe.batch.length, tokenizer, paper)
        raise
    if left_out:
        say(f"{counted(left_out, 'row')} longer than batch.length {recipe.batch.length}: left out")
    _show(find_row(recipe, kept, row, tokenizer.pad_id), row, tokenizer, paper)


def find_row(recipe: Recipe, examples: Sequence[Example], row: int, pad_id: int) -> RowPlace:
    """Row number `row` (from 0) in training order."""
    loader = Loader(examples, recipe.batch, recipe.seed, pad_id)
    step = 1
    rows = loader.next_rows()
    while row >= len(rows):
        row -= len(rows)
        step = step + 1
        rows = loader.next_rows()
    micro, place = divmod(row, recipe.batch.micro_size)
    batch = micro_batches(rows, recipe.batch, pad_id)[micro]
    documents = batch.documents[place].tolist()
    labels = batch.labels[place].tolist()
    # the first token of a document is never predicted
    taught = [
        label != IGNORE_INDEX and i > 0 and documents[i - 1] == documents[i] != 0 for i, label in enumerate(labels)
    ]
    return RowPlace(step, micro + 1, rows[row], batch.tokens[place].tolist(), taught)


def _show(place: RowPlace, row: int, tokenizer: Tokenizer, paper: Console) -> None:
    filled = sum(len(example.tokens) for example in place.documents)
    padding = len(place.tokens) - filled
    paper.print(
        f"row {row}: step {place.step}, micro-batch {place.micro_batch}; {counted(len(place.tokens), 'token')} in "
        f"{counted(len(place.documents), 'document')}, {sum(place.taught):,} taught, {padding:,} padding"
    )
    paper.print(_legend(paper))
    start = 0
    for number, example in enumerate(place.documents, start=1):
        stop = start + len(example.tokens)
        paper.print(f"\ndocument {number}, tokens {start} to {stop - 1}: {on_one_line(example.name)}", markup=False)
        _show_document(place.tokens[start:stop], place.taught[start:stop], None, tokenizer, paper)
        start = stop
    if padding:
        paper.print(f"\npadding, tokens {start} to {len(place.tokens) - 1}: ignored", style="dim")


def _show_overlong(example: Example, length: int, tokenizer: Tokenizer, paper: Console) -> None:
    paper.print(f"the longest row, {counted(len(example.tokens), 'token')}: {on_one_line(example.name)}", markup=False)
    paper.print(_legend(paper))
    _show_document(example.tokens, example.taught, length, tokenizer, paper)


def _show_document(
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


def _legend(paper: Console) -> Text:
    if not _colours(paper):
        return Text("«taught», read; · is a space, ⏎ a line break")
    return Text.assemble(("taught", TAUGHT), ", ", ("read", READ), "; · is a space, ⏎ a line break")


def _colours(paper: Console) -> bool:
    return paper.is_terminal and not paper.no_color
