"""The choice of the next token: from logits to the distribution that a request asks for, and a draw from it.

Shapes: V vocabulary.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from seektune.generate.sampling_params import Sampling


class Sampler:
    """Draws the tokens of one text; its draws depend on its seed and the text alone, whoever shares the batch."""

    def __init__(self, sampling: Sampling, seed: int, prompt: Iterable[int]):
        self.sampling = sampling
        self._dice = torch.Generator().manual_seed(seed % 2**64)
        self._seen = set(prompt) if sampling.repetition_penalty != 1 else set()

    def note(self, token: int) -> None:
        """A token became part of the text."""
        if self.sampling.repetition_penalty != 1:
            self._seen.add(token)

    def distribution(self, logits_V: Tensor) -> Tensor:
        """The probabilities of the next token, fp64 `[V]`; all on one token at temperature 0."""
        logits_V = self._penalized(logits_V.double())
        if self.sampling.temperature == 0:
            return torch.zeros_like(logits_V).index_fill_(0, logits_V.argmax(), 1.0)
        # the largest becomes 0: however low the temperature, nothing overflows
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
        """A token, by weights that need not sum to 1."""
        ends_V = weights_V.cumsum(dim=0)
        place = torch.searchsorted(ends_V, self._uniform() * ends_V[-1], right=True)
        # a rounding error must not choose what has no weight
        return int(place) if place < len(weights_V) else int(weights_V.nonzero()[-1])

    def accepts(self, draft: int, wanted_V: Tensor, drafted_V: Tensor) -> bool:
        """Whether a token that was drawn from `drafted` may stand for one drawn from `wanted`.

        With `draw((wanted - drafted).clamp(min=0))` where it may not, the outcome is distributed as `wanted`
        (Leviathan et al. 2023, arXiv:2211.17192, theorem 1).
        """
        return self._uniform() * float(drafted_V[draft]) < float(wanted_V[draft])

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self._dice, dtype=torch.float64))

    def _penalized(self, logits_V: Tensor) -> Tensor:
        if not self._seen:
            return logits_V
        seen = torch.tensor(sorted(self._seen), device=logits_V.device)
        penalty = self.sampling.repetition_penalty
        before = logits_V[seen]
        # where a result has no number, the largest and all others in proportion, so that their order stays
        most = before * (torch.finfo(before.dtype).max / before.abs().max())
        after = torch.where(before > 0, torch.fmin(before / penalty, most), torch.fmax(before * penalty, most))
        return logits_V.index_copy(0, seen, after)


def _nucleus(logits_V: Tensor, share: float) -> Tensor:
    ordered, order = logits_V.sort(descending=True, stable=True)
    probabilities = ordered.softmax(dim=0)
    before = probabilities.cumsum(dim=0) - probabilities
    return logits_V.index_fill(0, order[before >= share], -torch.inf)
