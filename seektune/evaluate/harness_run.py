"""Runs tasks of lm-evaluation-harness (extra `eval`) on a model: their data, options, cached answers and files."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.harness_scores import HarnessResults
from seektune.evaluate.likelihood import Progress
from seektune.generate.mesh import DecodeMesh
from seektune.model.causal_lm import DeepseekV4ForCausalLM

MAX_LENGTH = 4096
"""Maximum tokens that the model reads at once."""
RESAMPLES = 1000
"""Of the examples, for standard errors that have no formula, such as that of a perplexity."""
ONE_PROCESS = "DISABLE_MULTIPROC"
"""Environment variable: the harness resamples in this process."""


@dataclass(frozen=True)
class HarnessOptions:
    """Options of the harness, by its own names."""

    limit: int | None = None
    """The first examples of each task; None = all."""
    num_fewshot: int | None = None
    """Solved examples before each question; None = as the task says."""
    apply_chat_template: bool = False
    """Whether prompts are conversations in the model's chat format, solved examples as earlier turns."""
    max_length: int = MAX_LENGTH
    """Maximum tokens that the model reads at once."""
    output_path: Path | None = None
    """Folder of results in the harness's own form; None writes none."""


DEFAULTS = HarnessOptions()


@dataclass(frozen=True)
class HarnessRun:
    """Tasks that the harness knows, and how they run."""

    specs: tuple[str, ...]
    """Names of tasks, groups and tags, and paths of .yaml files."""
    options: HarnessOptions
    manager: Any
    """The harness's index of its tasks, which takes seconds to make."""

    @classmethod
    def of(cls, specs: Sequence[str], options: HarnessOptions, asked_by: str, known: str = "") -> "HarnessRun":
        """Check that the harness knows the tasks.

        Args:
            specs: names or paths of tasks.
            options: how they run.
            asked_by: what stands before a name in messages, such as `evaluate.tasks names `.
            known: what ends a message about an unknown name.

        Raises:
            ValueError: the harness is not installed, or knows no such task, or the results' folder is a file.
        """
        if find_spec("lm_eval") is None:
            wanted = f"{asked_by}{specs[0]:.80}: pip install 'seektune[eval]'"
            raise ValueError(f"{wanted} for tasks of lm-evaluation-harness{known}")
        if options.output_path is not None and options.output_path.is_file():
            raise ValueError(f"{options.output_path} is a file; results of the harness need a folder")
        from lm_eval.tasks import TaskManager

        manager = TaskManager()
        for spec in specs:
            if spec.endswith(".yaml") and not Path(spec).is_file():
                raise ValueError(f"{asked_by}{spec:.200}: no such file")
            if not spec.endswith(".yaml") and spec not in manager.all_tasks:
                raise ValueError(f"{asked_by}{spec:.80}: lm-evaluation-harness has no task of this name{known}")
        return cls(tuple(specs), options, manager)

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """The group that scores its tasks together, or the tasks, that each of `specs` stands for.

        Their data is fetched.

        Raises:
            ValueError: a task is defined wrongly, or named twice.
            OSError: data cannot be fetched.
        """
        owners: dict[str, str] = {}
        found = {}
        for spec in self.specs:
            loaded = self.manager.load([spec])
            for task in loaded["tasks"]:
                if task in owners:
                    raise ValueError(
                        f"{owners[task]:.80} and {spec:.80} both have the task {task:.80}; name one of them"
                    )
                owners[task] = spec
            group = loaded["groups"].get(spec)
            found[spec] = [spec] if group is not None and group.has_aggregation else [*loaded["tasks"]]
        return found

    def run(
        self,
        model: DeepseekV4ForCausalLM | DecodeMesh,
        tokenizer: Tokenizer,
        batch_tokens: int,
        progress: Progress | None = None,
        label: str = "model",
        cache: Path | None = None,
    ) -> HarnessResults:
        """Evaluate a model; what is cached is not computed again.

        Args:
            model: on one device, or on several processes led by rank 0.
            tokenizer: the one it was trained with.
            batch_tokens: most tokens, padding included, of one forward.
            progress: called with the number of answered requests and their total, for each kind of request.
            label: name of the model in the harness's files.
            cache: file in which answers are kept until the evaluation is finished; None keeps none.

        Raises:
            ValueError: a task cannot run: it samples, or runs code of the model's answers.
            OSError: results cannot be written.
        """
        from lm_eval import simple_evaluate

        from seektune.evaluate.harness import HarnessModel

        options = self.options
        with _contained():
            found = simple_evaluate(
                HarnessModel(model, tokenizer, batch_tokens, options.max_length, progress),
                tasks=[*self.specs],
                task_manager=self.manager,
                limit=options.limit,
                num_fewshot=options.num_fewshot,
                apply_chat_template=options.apply_chat_template,
                use_cache=None if cache is None else str(cache),
                bootstrap_iters=RESAMPLES,
                torch_random_seed=None,  # a training run continues with its own random numbers
            )
        if options.output_path is not None:
            _write(found, options.output_path, label)
        if cache is not None:
            for file in cache.parent.glob(f"{cache.name}*"):
                file.unlink()
        return HarnessResults(found)


@contextmanager
def _contained() -> Iterator[None]:
    """Keep the harness in this process, whose signal handlers forked ones would inherit, and off standard output."""
    before = os.environ.get(ONE_PROCESS)
    os.environ[ONE_PROCESS] = "1"
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        del os.environ[ONE_PROCESS]
        if before is not None:
            os.environ[ONE_PROCESS] = before


def _write(found: Any, folder: Path, label: str) -> None:
    """Write `results_TIME.json` and `samples_TASK_TIME.jsonl` under the model's name, as the harness does."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder))
    args = tracker.general_config_tracker
    args.log_experiment_args("seektune", f"pretrained={label}", None, None, None)
    samples = found.pop("samples", None)
    tracker.save_results_aggregated(found, samples)
    for name, rows in (samples or {}).items():
        tracker.save_results_samples(name, rows)
    if samples is not None:
        found["samples"] = samples
    # the tracker only logs a failure
    if not list((folder / str(args.model_name_sanitized)).glob("results_*.json")):
        raise OSError(f"{folder}: the results could not be written")
