"""The part of a decode engine on one rank of a pipeline: a worker for each group of sequences.

There are as many groups as stages, and a plan is about one of them, in turn. A stage runs a plan one step after the
stage before, so that in each step every stage works on another group; the last stage samples, and the group's next plan
brings the tokens to the others.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from seektune.generate.capacity import CacheRoom
from seektune.generate.decodable import DecodableModel
from seektune.generate.plan import EngineOptions, StepPlan, StepReport
from seektune.generate.prefill import Prefill
from seektune.generate.request import DraftCounts, Token
from seektune.generate.running_batch import RunningBatch
from seektune.generate.step_result import ForwardResult, StepResult
from seektune.generate.worker import DecodeWorker
from seektune.parallel.decode_stage import DecodeStage

NOTHING = StepPlan((), (), decode=False, prefill=False)


class StageWorker(DecodeWorker):
    """The sequences of a group on a stage before the last one, which does not sample."""

    def __init__(self, model: DecodableModel, options: EngineOptions, rank: int, measured: CacheRoom | None):
        super().__init__(model, options, rank, measured)
        self._plan = NOTHING
        self._passes: tuple[ForwardResult | None, Prefill | None] = (None, None)
        self._sampled: dict[int, Token] = {}

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StepReport:
        """Take the tokens of the group's plan before, then run the forward passes of this one."""
        self._sampled = {token.request: token for token in plan.sampled}
        found = StepResult()
        self._finish(self._plan, *self._passes, found)
        unscored = [replace(each, request=replace(each.request, echo=False, grammar=None)) for each in plan.admitted]
        self._plan = plan
        self._passes = self._run(replace(plan, admitted=unscored), found)
        return replace(self._report(found), tokens=[], running=0, prefilling=False)

    def _reserve(self, texts: RunningBatch, taken: list[list[Token]]) -> None:
        """Let the caches grow. The other stages do not know of a sequence that ends here, so an error is reported."""
        texts.reserve(max(texts.cache.lengths) + texts.ahead)

    def _take(self, after: ForwardResult, counts: Sequence[DraftCounts]) -> list[list[Token]]:
        taken = [self._sampled[row.index] for row in after.texts.rows]
        for row, token in zip(after.texts.rows, taken, strict=True):
            row.last = token.id
        return [[token] for token in taken]


class PipelineWorker:
    """The sequences of one rank of a pipeline."""

    def __init__(self, stage: DecodeStage, options: EngineOptions, rank: int, measured: CacheRoom | None):
        """`rank` is that among the ranks of the stage; `measured` is as of `DecodeWorker`."""
        self._stage = stage
        kind = DecodeWorker if stage.is_last else StageWorker
        self._workers = [kind(stage, options, rank, measured) for _ in range(stage.link.stages)]
        self._plans = deque([NOTHING] * stage.link.stage)
        self._arrived: list[torch.Tensor] = []
        self._cache_bytes = [0] * stage.link.stages

    @property
    def room(self) -> CacheRoom:
        """The memory for caches, before the first step."""
        return self._workers[0].room

    def step(self, plan: StepPlan) -> StepReport:
        """Run the plan of as many steps ago as there are stages before this one."""
        self._plans.append(plan)
        mine = self._plans.popleft()
        report, self._arrived = self._stage.run(self._arrived, partial(self._workers[mine.group].step, mine))
        assert report.error is not None or self._stage.took_all, "the stage before ran the same passes"
        self._cache_bytes[mine.group] = report.cache_bytes
        return replace(report, cache_bytes=sum(self._cache_bytes))
