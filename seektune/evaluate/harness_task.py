"""Tasks of lm-evaluation-harness by name, `lm_eval:NAME` (extra `eval`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.config import HARNESS, TaskConfig
from seektune.evaluate.likelihood import Progress, Scorer
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import Metric, TaskInfo, TaskScore
from seektune.generate.mesh import DecodeMesh
from seektune.model.causal_lm import DeepseekV4ForCausalLM

REACH = 1.96
"""Half of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class HarnessTask:
    """A task, or a file that defines one, and what it found; metrics are known once it ran."""

    config: TaskConfig
    max_length: int
    """Maximum tokens that the model reads at once."""
    manager: Any
    """The harness's index of its tasks, which takes seconds to make."""
    decodes: ClassVar[bool] = True

    @classmethod
    def of(cls, config: TaskConfig, max_length: int) -> "HarnessTask":
        """Check that the harness knows the task, and have it fetch the task's data.

        Raises:
            ValueError: the harness is not installed, or knows no such task.
            OSError: the data cannot be fetched.
        """
        if find_spec("lm_eval") is None:
            raise ValueError(f"evaluate.tasks names {config.name}: pip install 'seektune[eval]'")
        from lm_eval.tasks import TaskManager

        name = config.name.removeprefix(HARNESS)
        manager = TaskManager()
        if not name.endswith(".yaml") and name not in manager.all_tasks:
            raise ValueError(f"evaluate.tasks names {config.name}, but lm-evaluation-harness has no task {name!r:.80}")
        manager.load([name])
        return cls(config, max_length, manager)

    @property
    def info(self) -> TaskInfo:
        """Without metrics."""
        return self._info({})

    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """As `Task.run`; intervals are those of the harness's standard errors, and `progress` is not called."""
        from lm_eval import simple_evaluate

        from seektune.evaluate.harness import HarnessModel

        assert isinstance(model, DeepseekV4ForCausalLM | DecodeMesh), "the model can decode"
        name = self.config.name.removeprefix(HARNESS)
        harness_model = HarnessModel(model, tokenizer, batch_tokens, self.max_length)
        found = simple_evaluate(
            harness_model, tasks=[name], limit=self.config.limit, log_samples=False, task_manager=self.manager
        )
        results: Mapping[str, Any] = found["results"]
        own = results.get(name) or next(iter(results.values()))
        counts = found["n-samples"]
        number = sum(each["effective"] for each in counts.values())
        metrics = dict(_estimates(own))
        return TaskScore(self._info({key: Metric(key, ".4f") for key in metrics}), metrics, {"n": number}, {})

    def _info(self, metrics: Mapping[str, Metric]) -> TaskInfo:
        return TaskInfo(
            self.config.title,
            self.config.title,
            items="examples",
            about=f"examples, run by lm-evaluation-harness ({self.config.name.removeprefix(HARNESS)})",
            test="",
            metrics=metrics,
            facts=(("examples", "{n:,}"),),
        )


def _estimates(results: Mapping[str, Any]) -> dict[str, Estimate]:
    """Metrics as the harness names them, `acc,none` without `,none`."""
    values = {key: value for key, value in results.items() if isinstance(value, float) and "_stderr," not in key}
    found = {}
    for key, value in values.items():
        name, _, kind = key.partition(",")
        error = results.get(f"{name}_stderr,{kind}")
        reach = REACH * error if isinstance(error, float) else 0.0
        found[key.removesuffix(",none")] = Estimate(value, value - reach, value + reach)
    return found
