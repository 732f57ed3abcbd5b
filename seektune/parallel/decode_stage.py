"""A pipeline stage that decodes and scores: its layers, and the streams that arrive from the stage before.

Shapes: B rows, T tokens, S streams, D width.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from seektune.model.config import DeepseekV4Config
from seektune.model.dspark import LayerMeans
from seektune.model.gate import RoutingLedger
from seektune.model.head import TokenScores
from seektune.model.kv_cache.decode import CachedTransformer
from seektune.model.transformer import Activations, TokenRows
from seektune.parallel.mesh import Mesh
from seektune.parallel.stage_link import StageLink
from seektune.sequence import Batch

T = TypeVar("T")


class DecodeStage(CachedTransformer):
    """Consecutive layers of a pipeline, which has one stage on each of its ranks.

    The stages of a pipeline run the same forward passes, each one step after the stage before.
    """

    def __init__(self, config: DeepseekV4Config, layers: Sequence[int], mesh: Mesh, dtype: torch.dtype, numerics: str):
        """On the meta device."""
        link = StageLink(mesh, dtype)
        super().__init__(config, layers, dtype, numerics, first=link.stage == 0, last=link.stage == link.stages - 1)
        self.link = link
        self._arrived: deque[Tensor] = deque()
        self._sent: list[Tensor] = []

    def run(self, arrived: Sequence[Tensor], passes: Callable[[], T]) -> tuple[T, list[Tensor]]:
        """Run forward passes, each on the next of the streams that have arrived, and send what they computed.

        All ranks of the pipeline call it. Returns the result of `passes`, and the streams that have arrived meanwhile.
        """
        self._arrived = deque(arrived)
        self._sent = []
        result = passes()
        return result, self.link.exchange(self._sent)

    @property
    def took_all(self) -> bool:
        """Whether the passes of the last `run` took all streams that had arrived."""
        return not self._arrived

    def backbone(
        self,
        rows: TokenRows,
        mtp: bool = False,
        ledger: RoutingLedger | None = None,
        received: Activations | None = None,
        means: LayerMeans | None = None,
    ) -> Activations:
        """As of `TransformerPart`, on streams that have arrived; within `run`."""
        if not self.is_first:
            received = Activations(self._arrived.popleft())
        activations = super().backbone(rows, mtp, ledger, received, means)
        if not self.is_last:
            self._sent.append(activations.streams_BTSD)
        return activations

    @torch.no_grad()
    def score(self, batch: Batch) -> TokenScores:
        """Scores of the taught tokens of rows, `[B, T]`, on the last stage; of no rows on the others.

        The stages work on a part of the rows each.
        """
        count = min(self.link.stages, len(batch.tokens))
        parts = [batch.share(i, count).to(self.device) for i in range(count)]
        found: list[TokenScores] = []
        arrived: list[Tensor] = []
        for step in range(count + self.link.stages - 1):
            number = step - self.link.stage
            here = parts[number : number + 1] if number >= 0 else []
            scores, arrived = self.run(arrived, partial(self._scores, here))
            found += scores
        return TokenScores.joined(found)

    def _scores(self, batches: Sequence[Batch]) -> list[TokenScores]:
        """The forward passes of some rows; nothing before the last stage."""
        found = []
        for batch in batches:
            rows = TokenRows(batch.tokens, self.sequence(batch.documents))
            streams = self.backbone(rows).streams_BTSD
            if self.is_last:
                found.append(self.scores_of(self.hidden(streams), rows.layout, batch.labels))
        return found
