"""The command `eval`: a model's scores on a task with intervals, and a comparison with another model."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress as Bar

from seektune.checkpoint import locate
from seektune.data.datasets.dataset import DataCache
from seektune.data.datasets.registry import DATASETS
from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate.choice_task import ChoiceTask
from seektune.evaluate.config import DRAFTER
from seektune.evaluate.drafter_task import DrafterTask, draft_size, drafter_task
from seektune.evaluate.likelihood import Progress
from seektune.evaluate.perplexity import PerplexityTask, read_texts
from seektune.evaluate.statistics import Change
from seektune.evaluate.task import Metric, Task, TaskScore
from seektune.generate.mesh import DecodeMesh
from seektune.generate.processes import ONE_PROCESS, DecodeProcesses, refuse_on_several
from seektune.generate.session import AS_STORED, LoadOptions, note_other_tokenizer
from seektune.io.console import counted, say
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.variants import encoding_of
from seektune.workflows.prompt_rows import prompt_ids, read_prompt_rows

PERPLEXITY = "perplexity"
TASKS = (*(name for name, section in DATASETS.items() if section.has_questions), PERPLEXITY, DRAFTER)
"""Datasets with questions, perplexity of any text, and what a model accepts of its drafter's proposals."""


@dataclass(frozen=True)
class EvalOptions:
    """How models are loaded and evaluated."""

    reading: LoadOptions = AS_STORED
    """An adapter is applied to the first model, not to the one that it is compared with."""
    batch_tokens: int = 8192
    """Maximum tokens, padding included, of one forward."""
    limit: int | None = None
    """Number of questions (spread evenly over the split) or documents (the first ones); None = all."""
    length: int = 2048
    """Perplexity: maximum tokens of a window."""
    stride: int | None = None
    """Perplexity: tokens that each window predicts in addition to those before it; None = `length`."""


def evaluate(
    model: str,
    task: str,
    data: Path | None,
    cache_dir: Path,
    setting: EvalOptions,
    against: str | None,
    as_json: bool,
    processes: DecodeProcesses = ONE_PROCESS,
) -> None:
    """Print the scores of a model, and how they differ from another's.

    Args:
        model: a checkpoint folder in any of our formats, or a Hub id.
        task: one of `TASKS`.
        data: a file or folder with the questions or texts; None downloads a dataset's own questions.
        cache_dir: keeps downloads.
        setting: options of loading and evaluation.
        against: the model to compare with.
        as_json: print JSON instead of lines.
        processes: each of them calls this; rank 0 reads the data and prints.

    Raises:
        ValueError: the task, the data or a model is invalid.
        ArithmeticError: a model's logits are not finite.
        OSError: the data or a model cannot be read or downloaded.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    refuse_on_several(task == DRAFTER and processes.slot.world > 1, f"--task {DRAFTER}")
    bare = replace(setting.reading, adapter=None)
    readings = [(model, setting.reading)]
    if against is not None and (against, bare) != (model, setting.reading):
        readings.append((against, bare))
    if not processes.is_main:
        for name, reading in readings:
            reading.read_spread(name, processes).follow()
        return
    asked = _task(task, data, cache_dir, setting, model)
    if task == DRAFTER and against is not None:
        _check_same_drafter(model, against)
    scores = [_run(asked, name, reading, setting.batch_tokens, processes) for name, reading in readings]
    first = scores[0]
    second = None if against is None else scores[-1]
    changes = {} if second is None else first.since(second)
    if as_json:
        adapter = setting.reading.adapter
        named = {} if adapter is None else {"adapter": str(adapter)}
        values = {"model": model, **named, "task": task, **first.to_dict()}
        if second is not None:
            found = {name: asdict(change) for name, change in changes.items()}
            values["against"] = {"model": against, **second.to_dict(), "difference": found}
        say(json.dumps(values, indent=2, allow_nan=False))
        return
    for label, value in first.lines():
        say(f"{label + ':':<15} {value}")
    if second is not None:
        said = {
            metric.label: _in_words(metric, changes[name])
            for name, metric in first.task.metrics.items()
            if name in changes
        }
        say(f"against {against}:")
        for label, value in second.lines():
            say(f"{label + ':':<15} {value}{said.get(label, '')}")


def _task(name: str, data: Path | None, cache_dir: Path, setting: EvalOptions, model: str) -> Task:
    if name == DRAFTER:
        return _drafter_task(data, setting, model)
    if name != PERPLEXITY:
        cache = DataCache(cache_dir, partial(print, file=sys.stderr))
        return ChoiceTask.of(DATASETS[name](kind=name), cache, setting.limit, data)
    if data is None:
        raise ValueError("perplexity needs --data: a .txt or .jsonl file, or a folder of them")
    texts = read_texts(data)[: setting.limit]
    length = setting.length
    stride = setting.stride or setting.length
    if stride > length:
        raise ValueError(f"stride {stride} is longer than a window of {length} tokens: some would never be predicted")
    return PerplexityTask(texts, length, stride)


def _check_same_drafter(model: str, against: str) -> None:
    configs = [DeepseekV4Config.from_pretrained(locate(name)) for name in (model, against)]
    sizes = [draft_size(config) for config in configs]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the drafter of {model} proposes {counted(sizes[0], 'token')} and that of {against} {sizes[1]}: "
            "they cannot be compared; evaluate each alone"
        )
    if configs[0].vocab_size != configs[1].vocab_size:
        raise ValueError(f"{model} and {against} have vocabularies of other sizes, so their prompts differ")


def _drafter_task(data: Path | None, setting: EvalOptions, model: str) -> DrafterTask:
    if data is None:
        raise ValueError("drafter needs --data: a .jsonl file of prompts, as generate --file reads")
    config = DeepseekV4Config.from_pretrained(locate(model))
    tokenizer = load_tokenizer(config.vocab_size)
    rows = list(islice(read_prompt_rows(data, "chat", encoding_of(config)), setting.limit))
    return drafter_task(config, [prompt_ids(row, "chat", encoding_of(config), tokenizer) for row in rows])


def _run(task: Task, model: str, reading: LoadOptions, batch_tokens: int, processes: DecodeProcesses) -> TaskScore:
    if processes.slot.world > 1:
        mesh = reading.read_spread(model, processes)
        return mesh.lead(lambda: _score(task, model, mesh, batch_tokens))
    return _score(task, model, reading.read(model, drafter=task.info.name == DRAFTER), batch_tokens)


def _score(task: Task, name: str, model: DeepseekV4ForCausalLM | DecodeMesh, batch_tokens: int) -> TaskScore:
    tokenizer = load_tokenizer(model.config.vocab_size)
    note_other_tokenizer(name, tokenizer)
    with torch.inference_mode(), _bar(f"{task.info.name}, {name}") as progress:
        return task.run(model, tokenizer, batch_tokens, progress)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    """A progress bar on standard error if that is a terminal."""
    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _in_words(metric: Metric, change: Change) -> str:
    """The first model's difference to the second, with interval and p-value."""
    if metric.percent:
        size = f"{100 * change.difference:+.2f} points ({100 * change.low:+.2f} to {100 * change.high:+.2f})"
    else:
        size = f"{change.difference:+.4f} ({change.low:+.4f} to {change.high:+.4f})"
    return f"; the first is {size}, p = {change.p_value:.3g}"
