"""The command `data preview`: prints a row as training reads it: taught tokens, document boundaries, padding."""

from pathlib import Path

import numpy as np
from rich.console import Console

from seektune.data.datasets.dataset import DataCache
from seektune.data.example import Example
from seektune.data.loader import Loader
from seektune.data.mixing import Mixture
from seektune.data.store.split import prepare_dataset
from seektune.data.tokenizer import Tokenizer
from seektune.data.training_order import RowPlace, find_row
from seektune.io.console import counted, say
from seektune.io.text import on_one_line
from seektune.recipe.recipe import Recipe
from seektune.run.data import open_split
from seektune.run.encode_settings import settings_without_weights
from seektune.workflows.shown_tokens import legend, show_document, show_example


def preview(recipe: Recipe, row: int, cache_dir: Path) -> None:
    """Print row number `row` (from 0) in training order.

    Where an example does not fit into a row and the recipe refuses that, the longest is shown with the place where the
    row ends.

    Raises:
        ValueError: the recipe or data is invalid, or an example is too long.
        OSError: the rows are not cached and cannot be downloaded.
    """
    settings = settings_without_weights(recipe.model)
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
    paper.print(legend(paper))
    start = 0
    for number, example in enumerate(place.documents, start=1):
        stop = start + len(example.tokens)
        paper.print(f"\ndocument {number}, tokens {start} to {stop - 1}: {on_one_line(example.name)}", markup=False)
        show_document(place.tokens[start:stop], place.taught[start:stop], None, tokenizer, paper)
        start = stop
    if padding:
        paper.print(f"\npadding, tokens {start} to {len(place.tokens) - 1}: ignored", style="dim")


def _show_overlong(example: Example, length: int, tokenizer: Tokenizer, paper: Console) -> None:
    paper.print(f"the longest row, {counted(len(example.tokens), 'token')}: {on_one_line(example.name)}", markup=False)
    paper.print(legend(paper))
    show_example(example, length, tokenizer, paper)
