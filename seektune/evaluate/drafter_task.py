"""The task `drafter`: how many tokens of a drafter's proposals the model accepts, on greedy answers to prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from seektune.data.datasets.dataset import DataCard
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.config import DRAFTER
from seektune.evaluate.likelihood import Progress, Scorer
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import Metric, TaskInfo, TaskScore
from seektune.generate.engine import DecodeEngine
from seektune.generate.mesh import DecodeMesh
from seektune.generate.request import DraftCounts, Request
from seektune.generate.sampling_params import Sampling
from seektune.io.console import counted
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.sequence import IGNORE_INDEX, Batch

NEW_TOKENS = 32
"""Length of an answer; it does not end at EOS, so that every prompt counts alike."""
ROWS = 32
"""Prompts that are answered together."""
PROMPTS = 32
"""Prompts that a run takes from its held-out examples."""


@dataclass(frozen=True)
class DrafterTask:
    """Prompts, which the model answers greedily with speculative decoding."""

    prompts: Sequence[Sequence[int]]
    size: int
    """Tokens that a draft proposes."""
    drafter: str
    """Beginning of a sentence about what proposes."""
    data: DataCard | None = None
    decodes: ClassVar[bool] = True

    @property
    def info(self) -> TaskInfo:
        """Labels: tokens per forward of the model, and the share of its forwards in which draft k is accepted."""
        shares = {
            _share(slot): Metric(f"draft {slot + 1} accepted", ".1%", headline=False) for slot in range(self.size)
        }
        return TaskInfo(
            DRAFTER,
            "drafter",
            items="prompts",
            about=(
                f"held-out prompts, answered greedily with {NEW_TOKENS} tokens; {self.drafter} "
                f"{counted(self.size, 'token')} at a time, and tokens per step counts those that one forward of the "
                "model gives: 1 without a drafter. A draft counts as accepted only if those before it are"
            ),
            test="random signs of the prompts' differences",
            metrics={
                "accepted_length": Metric("tokens per step", ".2f", outcomes="lengths", sizes="ones"),
                **shares,
            },
            facts=(("prompts", "{n:,}, {steps:,} steps"),),
            data=self.data,
        )

    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """As `Task.run`; the model must hold its drafter.

        Raises:
            ValueError: its drafter proposes another number of tokens than the task is for.
        """
        assert isinstance(model, DeepseekV4ForCausalLM | DecodeMesh), "the task needs a model that can decode"
        if (size := draft_size(model.config)) != self.size:
            raise ValueError(f"drafts of {size} and of {self.size} tokens cannot be compared; evaluate each alone")
        counts: list[DraftCounts] = []
        for start in range(0, len(self.prompts), ROWS):
            some = [DraftCounts() for _ in self.prompts[start : start + ROWS]]
            greedy = Sampling(temperature=0)
            requests = [
                replace(Request(prompt, NEW_TOKENS, greedy), drafts=own)
                for prompt, own in zip(self.prompts[start : start + ROWS], some, strict=True)
            ]
            for token in DecodeEngine(model, requests, speculative=True, cpu_kernels=False).tokens():
                if progress is not None and token.request == 0:
                    progress(len(counts), len(self.prompts))
            counts += some
        return self._score(counts)

    def _score(self, counts: Sequence[DraftCounts]) -> TaskScore:
        whole = [each.of_whole_steps(self.size) for each in counts]
        steps = [each.tried[0] for each in whole]
        lengths = [1 + each.accepted / each.tried[0] for each in whole]
        ones = [1] * len(counts)
        shares = {
            _share(slot): Estimate.of_parts([each.passed[slot] for each in whole], steps) for slot in range(self.size)
        }
        metrics = {"accepted_length": Estimate.of_ratio(lengths, ones), **shares}
        return TaskScore(
            self.info, metrics, {"n": len(counts), "steps": math.fsum(steps)}, {"lengths": lengths, "ones": ones}
        )


def drafter_task(
    config: DeepseekV4Config, prompts: Sequence[Sequence[int]], data: DataCard | None = None
) -> DrafterTask:
    """The task for models with this config.

    Raises:
        ValueError: they have no drafter, or `prompts` is empty.
    """
    if not prompts:
        raise ValueError("evaluating a drafter needs at least one prompt")
    size = draft_size(config)
    if size == 0:
        raise ValueError("the model has neither an MTP block nor DSpark stages, so no drafter can be evaluated")
    proposing = "the DSpark stages propose" if config.dspark_stages else "the MTP block proposes"
    return DrafterTask(prompts, size, proposing, data)


def draft_size(config: DeepseekV4Config) -> int:
    """Tokens that the drafter of a model proposes at a time; 0 without one."""
    return config.dspark_block_size or 0 if config.dspark_stages else config.mtp_layers


def prompts_of(batches: Sequence[Batch], limit: int = PROMPTS) -> list[list[int]]:
    """The tokens before the first taught one of held-out examples, evenly spaced over all of them."""
    prompts = []
    for batch in batches:
        for tokens, labels, documents in zip(*(x.tolist() for x in batch.tensors()), strict=True):
            for document in range(1, max(documents) + 1):
                inside = [i for i, number in enumerate(documents) if number == document]
                taught = next((i for i in inside if labels[i] != IGNORE_INDEX), inside[-1] if inside else 0)
                prompts.append([tokens[i] for i in inside if i < taught])
    kept = [prompt for prompt in prompts if prompt]
    spaced = range(min(limit, len(kept)))
    return [kept[i * len(kept) // len(spaced)] for i in spaced]


def _share(slot: int) -> str:
    return f"accepted_{slot + 1}"
