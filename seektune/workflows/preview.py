"""The command `data preview`: prints a row as training reads it: taught tokens, document boundaries, padding."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from seektune.data.datasets.dataset import DataCache, EncodeSettings
from seektune.data.example import Example
from seektune.data.loader import Loader
from seektune.data.mixing import Mixture
from seektune.data.store.split import prepare_dataset
from seektune.data.tokenizer import Tokenizer
from seektune.data.training_order import RowPlace, find_row
from seektune.io.console import counted, say
from seektune.io.text import on_one_line, printable
from seektune.model.variants import encoding_of
from seektune.recipe.recipe import Recipe
from seektune.run.build import read_config
from seektune.run.data import open_split

TAUGHT = "bold green"
READ = "default"
BEYOND = "red"
"""Colours of tokens: counted by the loss, only read, beyond the end of the row."""
SEAM = "|"
"""Between two tokens."""


def preview(recipe: Recipe, row: int, cache_dir: Path) -> None:
    """Print row number `row` (from 0) in training order.

    Where an example does not fit into a row and the recipe refuses that, the longest is shown with the place where the
    row ends.

    Raises:
        ValueError: the recipe or data is invalid, or an example is too long.
        OSError: the rows are not cached and cannot be downloaded.
    """
    config = read_config(recipe.model)
    settings = EncodeSettings(config.vocab_size, encoding_of(config))
    tokenizer = settings.tokenizer
    paper = Console(highlight=False, soft_wrap=True)
    cache = DataCache(cache_dir, say)
    examples = []
    for dataset in recipe.datasets:
        stores = prepare_dataset(dataset, settings, cache)
        try:
            examples.append(open_split(dataset, "train", stores, recipe, say).examples)
        except ValueError:
            longest = stores["train"].example(int(np.argmax(stores["train"].lengths)))
            _show_overlong(longest, recipe.batch.length, tokenizer, paper)
            raise
    mixture = Mixture(examples, recipe.seed, [dataset.weight for dataset in recipe.datasets])
    _show(find_row(Loader(mixture, recipe.batch, tokenizer.pad_id), row), row, tokenizer, paper)


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
    taught = [bool(each) for each in example.taught]
    _show_document([int(token) for token in example.tokens], taught, length, tokenizer, paper)


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
