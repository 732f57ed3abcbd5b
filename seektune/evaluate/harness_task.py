"""Tasks of lm-evaluation-harness by name, `lm_eval:NAME` (extra `eval`)."""

from dataclasses import dataclass
from typing import ClassVar

from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.config import HARNESS, TaskConfig
from seektune.evaluate.harness_run import HarnessOptions, HarnessRun
from seektune.evaluate.harness_scores import unknown_scores
from seektune.evaluate.likelihood import Progress, Scorer
from seektune.evaluate.task import TaskInfo, TaskScore
from seektune.generate.mesh import DecodeMesh
from seektune.model.causal_lm import DeepseekV4ForCausalLM


@dataclass(frozen=True)
class HarnessTask:
    """A task, or a file that defines one, and what it found; metrics are known once it ran."""

    config: TaskConfig
    harness: HarnessRun
    name: str
    """As the harness has it."""
    decodes: ClassVar[bool] = True

    @classmethod
    def of(cls, config: TaskConfig, max_length: int) -> "HarnessTask":
        """Check that the harness knows the task, and have it fetch the task's data.

        Args:
            config: names the task.
            max_length: maximum tokens that the model reads at once.

        Raises:
            ValueError: the harness is not installed or knows no such task, or the name stands for several tasks.
            OSError: the data cannot be fetched.
        """
        options = HarnessOptions(config.limit, config.num_fewshot, config.apply_chat_template, max_length)
        harness = HarnessRun.of([config.name.removeprefix(HARNESS)], options, f"evaluate.tasks names {HARNESS}")
        (names,) = harness.names.values()
        if len(names) != 1:
            raise ValueError(
                f"{config.name} of evaluate.tasks stands for {len(names)} tasks; name each: {', '.join(names)}"
            )
        return cls(config, harness, names[0])

    @property
    def info(self) -> TaskInfo:
        """Without metrics."""
        return unknown_scores(self.name, self.config.title)

    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """As `Task.run`; intervals are those of the harness's standard errors."""
        assert isinstance(model, DeepseekV4ForCausalLM | DecodeMesh), "the model can decode"
        return self.harness.run(model, tokenizer, batch_tokens, progress).score(self.name, self.config.title)
