"""Multiple-choice tasks: the most likely ending of a question, scored as in lm-evaluation-harness."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from seektune.data.datasets.dataset import DataCache, DataCard, DataConfig
from seektune.data.example import continuation
from seektune.data.question import Question, encode_endings
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.likelihood import Likelihood, Progress, Scorer, likelihoods
from seektune.evaluate.multiple_choice import ChoicePrompt, choice_likelihoods
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import Baseline, Metric, TaskInfo, TaskScore
from seektune.model.causal_lm import DeepseekV4ForCausalLM


@dataclass(frozen=True)
class ChoiceTask:
    """Questions with several endings, zero-shot.

    An ending is scored by the sum of the log-likelihoods of the tokens of " " + ending after the prompt; `acc` takes
    the likeliest, `acc_norm` the likeliest per character of the ending (without that space). Prompt and ending are
    encoded in one piece and cut at the length of the prompt alone (`encode_continuations`). Two choices are ours: the
    prompt begins with BOS, and EOS after the right ending counts in `loss` (not in the scores), because it is taught.
    """

    name: str
    title: str
    questions: Sequence[Question]
    data: DataCard | None = None
    decodes: ClassVar[bool] = False

    @classmethod
    def of(
        cls, section: DataConfig, cache: DataCache, limit: int | None = None, path: Path | None = None
    ) -> "ChoiceTask":
        """The questions of a dataset, under its name; for arguments and errors see `DataConfig.questions`."""
        return cls(section.kind, section.title, section.questions(cache, limit, path), section.card())

    @property
    def info(self) -> TaskInfo:
        """The labels of `acc` and `acc_norm`, and the accuracy of guessing."""
        chances = [1 / len(question.endings) for question in self.questions]
        guessing = Baseline("guessing", math.fsum(chances) / len(chances))
        return TaskInfo(
            self.name,
            self.title,
            items="questions",
            about="validation questions, without examples, scored as lm-evaluation-harness does",
            test="McNemar, exact",
            metrics={
                "acc": Metric("acc", ".1%", baseline=guessing, outcomes="right"),
                "acc_norm": Metric("acc_norm", ".1%", baseline=guessing, outcomes="right_norm"),
            },
            facts=(("questions", "{n:,}"), ("loss", "{loss:z.4f} nats per token of the right endings")),
            data=self.data,
        )

    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """As `Task.run`; a longer ending than `batch_tokens` is run alone."""
        assert self.questions, "there are no questions"
        encoded = iter(encode_endings(tokenizer, self.questions))
        prompts = [[next(encoded) for _ in question.endings] for question in self.questions]
        if isinstance(model, DeepseekV4ForCausalLM):
            # a model on one device computes a prompt once for all its endings
            choices = [ChoicePrompt(each[0][0], [ending for _, ending in each]) for each in prompts]
            found = choice_likelihoods(model, choices, batch_tokens, progress)
        else:
            sequences = [
                continuation(prompt, ending, question.name)
                for question, each in zip(self.questions, prompts, strict=True)
                for prompt, ending in each
            ]
            found = likelihoods(model, sequences, batch_tokens, tokenizer.pad_id, progress)
        return self._score(found)

    def _score(self, found: Sequence[Likelihood]) -> TaskScore:
        right = []
        right_norm = []
        taught: list[float] = []
        rest = iter(found)
        for question in self.questions:
            answers = [next(rest).losses for _ in question.endings]
            # The last token is EOS, which the harness does not score.
            sums = [-math.fsum(answer[:-1]) for answer in answers]
            if any(math.isnan(value) for value in sums):
                raise ArithmeticError(f"{question.name}: the model's log-likelihood of an ending is not a number")
            per_character = [value / len(ending) for value, ending in zip(sums, question.endings, strict=True)]
            right.append(sums.index(max(sums)) == question.label)
            right_norm.append(per_character.index(max(per_character)) == question.label)
            taught += answers[question.label]
        return TaskScore(
            self.info,
            {"acc": Estimate.of_share(right), "acc_norm": Estimate.of_share(right_norm)},
            {"n": len(right), "loss": math.fsum(taught) / len(taught), "loss_tokens": len(taught)},
            {"right": _signs(right), "right_norm": _signs(right_norm)},
        )


def _signs(outcomes: Sequence[bool]) -> str:
    return "".join("1" if outcome else "0" for outcome in outcomes)
