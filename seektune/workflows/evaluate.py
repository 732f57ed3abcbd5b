"""The command `eval`: a model's scores on tasks with intervals, and a comparison with another model."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from seektune.evaluate.config import DRAFTER, HARNESS
from seektune.evaluate.drafter_task import DrafterTask, draft_size, drafter_task
from seektune.evaluate.harness_run import DEFAULTS, HarnessOptions, HarnessRun
from seektune.evaluate.likelihood import Progress
from seektune.evaluate.perplexity import PerplexityTask, read_texts
from seektune.evaluate.task import Task, TaskScore
from seektune.generate.mesh import DecodeMesh
from seektune.generate.processes import ONE_PROCESS, DecodeProcesses
from seektune.generate.session import AS_STORED, LoadOptions, note_cache_room, note_other_tokenizer
from seektune.io.console import counted
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.variants import encoding_of
from seektune.workflows.eval_output import Evaluated, say_json, say_lines
from seektune.workflows.harness_cache import answers_file
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
    """Number of questions (spread evenly over the split), or of documents or examples (the first ones); None = all."""
    length: int = 2048
    """Perplexity: maximum tokens of a window."""
    stride: int | None = None
    """Perplexity: tokens that each window predicts in addition to those before it; None = `length`."""
    harness: HarnessOptions = DEFAULTS
    """Of tasks of lm-evaluation-harness; its `limit` is that of the command."""


@dataclass(frozen=True)
class EvalTasks:
    """The tasks of a command."""

    own: Sequence[Task]
    harness: HarnessRun | None
    """Those of lm-evaluation-harness; None if there are none."""

    def run(
        self, name: str, model: DeepseekV4ForCausalLM | DecodeMesh, batch_tokens: int, answers: Path | None
    ) -> dict[str, TaskScore]:
        """The scores of a model by task; `answers` is the file of the harness's finished answers."""
        tokenizer = load_tokenizer(model.config.vocab_size)
        note_other_tokenizer(name, tokenizer)
        note_cache_room(model)
        scores = {}
        for task in self.own:
            with torch.inference_mode(), _bar(f"{task.info.name}, {name}") as progress:
                scores[task.info.name] = task.run(model, tokenizer, batch_tokens, progress)
        if self.harness is not None:
            with torch.inference_mode(), _bar(f"lm_eval, {name}") as progress:
                found = self.harness.run(model, tokenizer, batch_tokens, progress, name, answers)
            names = [each for names in self.harness.names.values() for each in names]
            scores |= {each: found.score(each, each) for each in names}
        return scores


def evaluate(
    model: str,
    tasks: Sequence[str],
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
        tasks: of `TASKS`, and names and .yaml files of lm-evaluation-harness, also as `lm_eval:NAME`.
        data: a file or folder with the questions or texts; None downloads a dataset's own questions.
        cache_dir: keeps downloads, and answers to the harness's tasks until they are finished.
        setting: options of loading and evaluation.
        against: the model to compare with.
        as_json: print JSON instead of lines.
        processes: each of them calls this; rank 0 reads the data and prints.

    Raises:
        ValueError: a task, the data or a model is invalid.
        ArithmeticError: a model's logits are not finite.
        OSError: the data or a model cannot be read or downloaded.
    """
    processes.refuse_with_pipeline(DRAFTER in tasks, f"--task {DRAFTER}")
    bare = replace(setting.reading, adapter=None)
    readings = [(model, setting.reading)]
    if against is not None and (against, bare) != (model, setting.reading):
        readings.append((against, bare))
    if not processes.is_main:
        for name, reading in readings:
            reading.read_spread(name, processes, DRAFTER in tasks).follow()
        return
    asked = _tasks(tasks, data, cache_dir, setting, model)
    configs = [DeepseekV4Config.from_pretrained(locate(name)) for name, _ in readings]
    for config in configs if PERPLEXITY in tasks else ():
        config.check_length(setting.length, "--length")
    if DRAFTER in tasks and against is not None:
        _check_same_drafter(model, against, configs[0], configs[-1])
    scores = [_run(asked, name, reading, setting, cache_dir, processes) for name, reading in readings]
    compared = None if against is None else Evaluated(against, None, scores[-1])
    say = say_json if as_json else say_lines
    say(Evaluated(model, setting.reading.adapter, scores[0]), compared)


def _tasks(names: Sequence[str], data: Path | None, cache_dir: Path, setting: EvalOptions, model: str) -> EvalTasks:
    """The tasks, checked before a model is loaded."""
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--task {','.join(names)}: name each task once, separated by commas")
    others = [name.removeprefix(HARNESS) for name in names if name not in TASKS]
    if others and data is not None:
        raise ValueError(f"--data is not for tasks of lm-evaluation-harness ({others[0]:.80}), which fetch their own")
    if PERPLEXITY not in names and (setting.length, setting.stride) != (EvalOptions.length, None):
        raise ValueError(f"--length and --stride are for --task {PERPLEXITY}; {names[0]:.80} has no windows")
    if not others and setting.harness != DEFAULTS:
        raise ValueError(
            f"{names[0]} has no --num-fewshot, --apply-chat-template or --output-path, which are for tasks of "
            f"lm-evaluation-harness; {HARNESS}NAME is the harness's own task of a name"
        )
    own = [_task(name, data, cache_dir, setting, model) for name in names if name in TASKS]
    if not others:
        return EvalTasks(own, None)
    options = replace(setting.harness, limit=setting.limit)
    harness = HarnessRun.of(others, options, "--task ", f"; the others are {', '.join(TASKS)}")
    harness.names  # noqa: B018 - fetches the data before a model is loaded
    return EvalTasks(own, harness)


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


def _check_same_drafter(model: str, against: str, ours: DeepseekV4Config, other: DeepseekV4Config) -> None:
    sizes = [draft_size(config) for config in (ours, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the drafter of {model} proposes {counted(sizes[0], 'token')} and that of {against} {sizes[1]}: "
            "they cannot be compared; evaluate each alone"
        )
    if ours.vocab_size != other.vocab_size:
        raise ValueError(f"{model} and {against} have vocabularies of other sizes, so their prompts differ")


def _drafter_task(data: Path | None, setting: EvalOptions, model: str) -> DrafterTask:
    if data is None:
        raise ValueError("drafter needs --data: a .jsonl file of prompts, as generate --file reads")
    config = DeepseekV4Config.from_pretrained(locate(model))
    tokenizer = load_tokenizer(config.vocab_size)
    rows = list(islice(read_prompt_rows(data, "chat", encoding_of(config)), setting.limit))
    return drafter_task(config, [prompt_ids(row, "chat", encoding_of(config), tokenizer) for row in rows])


def _run(
    tasks: EvalTasks,
    model: str,
    reading: LoadOptions,
    setting: EvalOptions,
    cache_dir: Path,
    processes: DecodeProcesses,
) -> dict[str, TaskScore]:
    reading.check()
    kept = tasks.harness is not None
    answers = answers_file(cache_dir, model, reading, setting.harness.max_length) if kept else None
    drafts = any(task.info.name == DRAFTER for task in tasks.own)
    if processes.slot.world > 1:
        mesh = reading.read_spread(model, processes, drafts)
        return mesh.lead(lambda: tasks.run(model, mesh, setting.batch_tokens, answers))
    return tasks.run(model, reading.read(model, drafter=drafts), setting.batch_tokens, answers)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    """A progress bar on standard error if that is a terminal."""
    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
