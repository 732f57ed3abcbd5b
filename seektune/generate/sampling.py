"""Sampling of the next token from logits.

Shapes: V vocabulary.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seektune.generate.sampling_params import Sampling

if TYPE_CHECKING:
    from seektune.generate.grammar import GrammarState


class Sampler:
    """Samples the tokens of one sequence; independent of the other sequences in the batch."""

    def __init__(self, sampling: Sampling, seed: int, prompt: Iterable[int], grammar: "GrammarState | None" = None):
        """Sample after a prompt; with a grammar, only what it allows."""
        self.sampling = sampling
        self.grammar = grammar
        self._generator = torch.Generator().manual_seed(seed % 2**64)
        self._seen = set(prompt) if sampling.repetition_penalty != 1 else set()

    def observe(self, token: int) -> None:
        """Record a token of the sequence, for the repetition penalty and the grammar."""
        if self.sampling.repetition_penalty != 1:
            self._seen.add(token)
        if self.grammar is not None:
            self.grammar.accept(token)

    def distribution(self, logits_V: Tensor, is_next: bool = True) -> Tensor:
        """The distribution of a token, fp64 `[V]`; one-hot at temperature 0.

        The grammar restricts the next token only: for drafts of later ones, its state is not known.
        """
        logits_V = self._penalized(logits_V.double())
        if self.grammar is not None and is_next:
            logits_V = logits_V.masked_fill(~self.grammar.allowed(logits_V.device), -torch.inf)
        if self.sampling.temperature == 0:
            return torch.zeros_like(logits_V).index_fill_(0, logits_V.argmax(), 1.0)
        # the largest logit becomes 0, so that no temperature overflows
        logits_V = (logits_V - logits_V.max()) / self.sampling.temperature
        if 0 < self.sampling.top_k < len(logits_V):
            least = logits_V.topk(self.sampling.top_k).values[-1]
            logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
        if self.sampling.top_p < 1:
            logits_V = _nucleus(logits_V, self.sampling.top_p)
        probabilities_V = logits_V.softmax(dim=0)
        if self.sampling.min_p > 0:
            least = self.sampling.min_p * probabilities_V.max()
            probabilities_V = probabilities_V.masked_fill(probabilities_V < least, 0.0)
        return probabilities_V / probabilities_V.sum()

    def draw(self, weights_V: Tensor) -> int:
        """Sample a token by weights that need not sum to 1."""
        ends_V = weights_V.cumsum(dim=0)
        place = torch.searchsorted(ends_V, self._uniform() * ends_V[-1], right=True)
        # a rounding error must not select a token of weight 0
        return int(place) if place < len(weights_V) else int(weights_V.nonzero()[-1])

    def accepts(self, draft: int, target_V: Tensor, drafted_V: Tensor) -> bool:
        """Whether to accept a token sampled from `drafted` in place of one sampled from `target`.

        With `draw((target - drafted).clamp(min=0))` after a rejection, the result is distributed as `target`
        (Leviathan et al. 2023, arXiv:2211.17192, theorem 1).
        """
        return self._uniform() * float(drafted_V[draft]) < float(target_V[draft])

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def _penalized(self, logits_V: Tensor) -> Tensor:
        if not self._seen:
            return logits_V
        seen = torch.tensor(sorted(self._seen), device=logits_V.device)
        penalty = self.sampling.repetition_penalty
        before = logits_V[seen]
        # results are clamped to finite numbers in proportion, so that their order stays
        most = before * (torch.finfo(before.dtype).max / before.abs().max())
        after = torch.where(before > 0, torch.fmin(before / penalty, most), torch.fmax(before * penalty, most))
        return logits_V.index_copy(0, seen, after)


def _nucleus(logits_V: Tensor, share: float) -> Tensor:
    ordered, order = logits_V.sort(descending=True, stable=True)
    probabilities = ordered.softmax(dim=0)
    before = probabilities.cumsum(dim=0) - probabilities
    return logits_V.index_fill(0, order[before >= share], -torch.inf)
