"""The command `data preview --dataset`: prints a row of a dataset, its examples, and why it is left out or split."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from seektune.data.chat_format.pieces import ChatText
from seektune.data.conversations.forms import read_conversation
from seektune.data.conversations.library import compare_with_library
from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings, Split
from seektune.data.example import Example
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowSource
from seektune.data.stats.dataset_stats import counted_tokens, shared_starts
from seektune.data.stats.measure import is_held_out
from seektune.data.store.split import chosen, stores_to_inspect
from seektune.io.console import counted, say
from seektune.io.text import on_one_line
from seektune.recipe.recipe import Recipe
from seektune.run.encode_settings import settings_without_weights
from seektune.workflows.shown_tokens import legend, show_example


def preview_row(recipe: Recipe, name: str, split: Split, row: int, cache_dir: Path) -> None:
    """Print row number `row` (from 0) of a dataset's split, in the order of its source.

    Raises:
        ValueError: the recipe or a file is invalid, or there is no such dataset or row.
        OSError: the rows cannot be read.
    """
    dataset = find_dataset(recipe, name)
    settings = settings_without_weights(recipe.model)
    cache = DataCache(cache_dir, say)
    dataset.fetch(cache)
    source = dataset.source(split, cache)
    if row >= source.count():
        raise ValueError(f"{source.title} has {counted(source.count(), 'row')}; --row must be below that")
    (found,) = source.read(row, row + 1)
    encoded = found if isinstance(found, BadRow) else dataset.encoder_of(split, settings).encode([found])[0]
    paper = Console(highlight=False, soft_wrap=True)
    say(f"{dataset.log_name}, {split} row {row}: {on_one_line(found.place)}")
    if isinstance(encoded, BadRow):
        outcome = "it is left out" if dataset.on_bad_row == "drop" else "training refuses to start"
        say(f"bad row: {encoded.reason}")
        say(f"data.on_bad_row is {dataset.on_bad_row}: {outcome}")
        return
    assert isinstance(found, SourceRow), "a row that was read has examples"
    for line in reasons_to_leave_out(dataset, source, found, row):
        say(line)
    if split == "train" and dataset.limit is not None and not _within_limit(dataset, settings, cache, row):
        say(f"left out: the {dataset.limit:,} rows of data.limit, spread evenly, are others")
    for line in remarks(dataset, encoded, recipe):
        say(line)
    paper.print(legend(paper))
    _show(encoded, recipe, settings, paper)
    if isinstance(dataset, ChatConfig):
        for line in library_lines(dataset, found, settings):
            say(line)


def find_dataset(recipe: Recipe, name: str) -> DataConfig:
    """The dataset of a name, as logs and metrics have it.

    Raises:
        ValueError: there is none.
    """
    names = [dataset.log_name for dataset in recipe.datasets]
    if name not in names:
        raise ValueError(f"no dataset is called {name}; the recipe has {', '.join(names)}")
    return recipe.datasets[names.index(name)]


def reasons_to_leave_out(dataset: DataConfig, source: RowSource, found: SourceRow, row: int) -> Iterator[str]:
    """Why training does not read a good row of its source."""
    if is_held_out(dataset, found):
        yield "held out: it is a validation row, by data.validation"
    if dataset.duplicates == "drop":
        earlier = (each for each in source.read(0, row) if isinstance(each, SourceRow))
        first = next((each.place for each in earlier if each.digest == found.digest), None)
        if first is not None:
            yield f"left out: it repeats {on_one_line(first)}, and data.duplicates is drop"


def _within_limit(dataset: DataConfig, settings: EncodeSettings, cache: DataCache, row: int) -> bool:
    """Whether training takes a row; all are encoded to tell, as bad ones do not count."""
    stores = stores_to_inspect(dataset, settings, cache)
    return row in stores["train"].rows[chosen(dataset, "train", stores).ids]


def remarks(dataset: DataConfig, examples: Sequence[Example], recipe: Recipe) -> Iterator[str]:
    """Why a row became several examples, and which of them do not fit."""
    if len(examples) > 1:
        shared = shared_starts(examples)
        yield (
            f"{len(examples)} examples: {dataset.several}; {counted(shared, 'token')} that they begin with in common "
            "are read again"
        )
    for number, example in enumerate(examples, start=1):
        if len(example.tokens) > recipe.batch.length:
            yield (
                f"example {number} has {counted(len(example.tokens), 'token')}, more than batch.length "
                f"{recipe.batch.length}; batch.overlong is {recipe.batch.overlong}"
            )


def library_lines(dataset: ChatConfig, row: SourceRow, settings: EncodeSettings) -> Iterator[str]:
    """How DeepSeek's library writes a good row."""
    teaching = dataset.teaching(settings, dataset.teach)
    conversation = read_conversation(row.values, dataset.columns)
    texts: list[ChatText] = teaching.texts(conversation)
    found = compare_with_library(conversation, teaching, texts)
    if found is None:
        yield "deepseek-recipe is not installed; with it, this shows where DeepSeek's library writes other text"
    elif not found.differences:
        yield f"deepseek-recipe {found.version} writes the same text ({counted(found.responses, 'taught response')})"
    else:
        yield f"deepseek-recipe {found.version} writes other text (docs/chat-format.md lists the causes):"
        yield from (f"  {line}" for line in found.differences)


def _show(examples: Sequence[Example], recipe: Recipe, settings: EncodeSettings, paper: Console) -> None:
    for example in examples:
        counts = f"{counted(len(example.tokens), 'token')}, {counted_tokens(example):,} taught"
        paper.print(f"\n{on_one_line(example.name)}: {counts}", markup=False)
        show_example(example, recipe.batch.length, settings.tokenizer, paper)
    paper.print()
