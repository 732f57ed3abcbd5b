"""The verb `eval`: how good a model is at a task, how sure that is, and whether it beats another."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from rich.console import Console
from rich.progress import Progress as Bar

from seektune.data.datasets.hellaswag import fetch_hellaswag, read_rows, read_split
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.evaluate.hellaswag import HellaswagScore, evaluate_hellaswag, spread_evenly
from seektune.evaluate.likelihood import Progress
from seektune.evaluate.perplexity import PerplexityScore, evaluate_perplexity, read_texts
from seektune.evaluate.statistics import Change, Estimate
from seektune.generate.session import AS_STORED, LoadOptions
from seektune.io.console import say
from seektune.model.causal_lm import DeepseekV4ForCausalLM

Score: TypeAlias = HellaswagScore | PerplexityScore
Exam: TypeAlias = Callable[[DeepseekV4ForCausalLM, Tokenizer, int, Progress], Score]
"""Holds an exam, given the most tokens of one forward."""


@dataclass(frozen=True)
class EvalOptions:
    """How models sit an exam."""

    reading: LoadOptions = AS_STORED
    """An adapter goes on the first model, not on the one that it is compared with."""
    batch_tokens: int = 8192
    """Most tokens, padding included, of one forward."""
    limit: int | None = None
    """Questions (spread evenly over the split) or documents (the first) that are asked; None = all."""
    length: int = 2048
    """Perplexity: most tokens that a window reads."""
    stride: int | None = None
    """Perplexity: tokens that a window predicts which the one before it did not; None = `length`."""


def evaluate(
    model: str, task: str, data: Path | None, cache_dir: Path, setting: EvalOptions, against: str | None, as_json: bool
) -> None:
    """Print how a model does, and what it does better than another.

    Args:
        model: a checkpoint folder in any of our formats, or a Hub id.
        task: one of `TASKS`.
        data: what is asked; None fetches HellaSwag.
        cache_dir: keeps what is fetched.
        setting: how.
        against: the model to compare with.
        as_json: print JSON instead of lines.

    Raises:
        ValueError: the task, the data or a model is not as it should be.
        ArithmeticError: a model gives no number.
        OSError: the data or a model cannot be read or fetched.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    exam = TASKS[task](data, cache_dir, setting)
    bare = replace(setting.reading, adapter=None)
    first = _sit(model, task, exam, setting.reading, setting.batch_tokens)
    second = None
    if against is not None:
        same = (against, bare) == (model, setting.reading)
        second = first if same else _sit(against, task, exam, bare, setting.batch_tokens)
    changes = {} if second is None else _changes(first, second)
    if as_json:
        adapter = setting.reading.adapter
        named = {} if adapter is None else {"adapter": str(adapter)}
        values = {"model": model, **named, "task": task, **first.to_dict()}
        if second is not None:
            found = {name: asdict(change) for name, change in changes.items()}
            values["against"] = {"model": against, **second.to_dict(), "difference": found}
        say(json.dumps(values, indent=2, allow_nan=False))
        return
    for name, value in _lines(first):
        say(f"{name + ':':<15} {value}")
    if second is not None:
        say(f"against {against}:")
        for name, value in _lines(second):
            change = f"; {_in_words(changes[name], name)}" if name in changes else ""
            say(f"{name + ':':<15} {value}{change}")


def _hellaswag(data: Path | None, cache_dir: Path, setting: EvalOptions) -> Exam:
    note = partial(print, file=sys.stderr)
    place = fetch_hellaswag(cache_dir, note)[0] if data is None else data.expanduser()
    rows = read_rows(place) if place.is_file() else read_split(place, "validation")
    asked = spread_evenly(rows, setting.limit)
    return lambda model, tokenizer, size, progress: evaluate_hellaswag(model, tokenizer, asked, size, progress)


def _perplexity(data: Path | None, _: Path, setting: EvalOptions) -> Exam:
    if data is None:
        raise ValueError("perplexity needs --data: a .txt or .jsonl file, or a folder of them")
    texts = read_texts(data.expanduser())[: setting.limit]
    length = setting.length
    stride = setting.stride or setting.length
    if stride > length:
        raise ValueError(f"stride {stride} is longer than a window of {length} tokens: some would never be predicted")
    return lambda model, tokenizer, size, progress: evaluate_perplexity(
        model, tokenizer, texts, length, stride, size, progress
    )


TASKS: dict[str, Callable[[Path | None, Path, EvalOptions], Exam]] = {
    "hellaswag": _hellaswag,
    "perplexity": _perplexity,
}


def _sit(name: str, task: str, exam: Exam, reading: LoadOptions, batch_tokens: int) -> Score:
    model = reading.read(name)
    tokenizer = load_tokenizer(model.config.vocab_size)
    with torch.inference_mode(), _bar(f"{task}, {name}") as progress:
        return exam(model, tokenizer, batch_tokens, progress)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    """A bar on standard error where that is a terminal."""
    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _changes(first: Score, second: Score) -> dict[str, Change]:
    """What the first does better than the second."""
    if isinstance(first, HellaswagScore):
        assert isinstance(second, HellaswagScore)
        return first.since(second)
    assert isinstance(second, PerplexityScore)
    return first.since(second)


def _lines(score: Score) -> list[tuple[str, str]]:
    if isinstance(score, HellaswagScore):
        return [
            ("questions", f"{score.n:,}"),
            ("acc", _share(score.acc)),
            ("acc_norm", _share(score.acc_norm)),
            ("loss", f"{score.loss:.4f} nats per token of the right endings"),
        ]
    return [
        ("text", f"{score.documents:,} documents, {score.tokens:,} tokens, {score.bytes:,} bytes"),
        ("windows", f"{score.windows:,} of up to {score.length} tokens, stride {score.stride}"),
        ("perplexity", _number(score.perplexity)),
        ("loss", f"{_number(score.loss)} nats per token"),
        ("bits per byte", _number(score.bits_per_byte)),
    ]


def _share(found: Estimate) -> str:
    return f"{found.value:.2%} ({found.low:.2%} to {found.high:.2%})"


def _number(found: Estimate) -> str:
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"


def _in_words(change: Change, name: str) -> str:
    if name == "loss":
        size = f"{change.difference:+.4f} ({change.low:+.4f} to {change.high:+.4f})"
    else:
        size = f"{100 * change.difference:+.2f} points ({100 * change.low:+.2f} to {100 * change.high:+.2f})"
    return f"the first is {size}, p = {change.p_value:.3g}"
