"""Drafters of speculative decoding: the MTP block proposes one token, DSpark stages several.

Shapes: B rows, T tokens, S streams, D width, F width of what a drafter reads, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seektune.generate.decodable import DecodableModel
from seektune.generate.sampling import Sampler
from seektune.model.dspark import DraftBlock, LayerMeans
from seektune.model.kv_cache.cache import KVCache


@dataclass(frozen=True)
class Draft:
    """A proposed token, and the distribution that it was drawn from."""

    token: int
    drafted_V: Tensor


class Proposal(Protocol):
    """What a drafter has computed of the tokens that follow each row."""

    def draw(self, samplers: Sequence[Sampler]) -> list[list[Draft]]:
        """Choose the proposed tokens of each row."""
        ...


class Drafter(Protocol):
    """What proposes tokens. It reads a value of each token that the backbone has read, and the token after it.

    Ranks that share its experts run the same forward passes: one for each `read` and one for each `propose`, which the
    methods `*_empty` take part in without tokens.
    """

    size: int
    """Largest number of tokens that one draft proposes."""

    def advance(self, tokens_BT: Tensor, cache: KVCache, counts: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """The backbone's streams `[B, T, S, D]`, and what `read` needs of these tokens, `[B, T, ...]`."""
        ...

    def read(self, features: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int]) -> None:
        """Read tokens of a prompt; `next_BT` are the tokens after them."""
        ...

    def read_empty(self) -> None:
        """Take part in `read`."""
        ...

    def propose(self, features: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int]) -> Proposal:
        """Read further tokens, and compute what follows the last one of each row of `next_BT`."""
        ...

    def propose_empty(self) -> None:
        """Take part in `propose`."""
        ...


@dataclass(frozen=True)
class MTPProposal:
    """One token of each row."""

    logits_BV: Tensor

    def draw(self, samplers: Sequence[Sampler]) -> list[list[Draft]]:
        """As `Proposal`."""
        return [[_drawn(sampler, logits_V)] for sampler, logits_V in zip(samplers, self.logits_BV, strict=True)]


class MTPDrafter:
    """The MTP block: one token at a time."""

    size = 1

    def __init__(self, model: DecodableModel):
        self._model = model

    def advance(self, tokens_BT: Tensor, cache: KVCache, counts: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """The MTP block reads the streams themselves."""
        streams = self._model.advance(tokens_BT, cache, counts)
        return streams, streams

    def read(self, features: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int]) -> None:
        """Fill the cache."""
        self._model.foresee(features, next_BT, cache, counts)

    def read_empty(self) -> None:
        """As `Drafter`."""
        self._model.draft_empty()

    def propose(self, features: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int]) -> MTPProposal:
        """The token after the last one of each row."""
        hidden_BTD = self._model.foresee(features, next_BT, cache, counts)
        last_BD = torch.stack([hidden[count - 1] for hidden, count in zip(hidden_BTD, counts, strict=True)])
        return MTPProposal(self._model.logits(last_BD))

    def propose_empty(self) -> None:
        """As `Drafter`."""
        self._model.draft_empty()


@dataclass(frozen=True)
class DSparkProposal:
    """A block of tokens of each row, each drawn given the one before it."""

    block: DraftBlock
    last_B: Tensor
    """The last token of each row."""
    size: int

    def draw(self, samplers: Sequence[Sampler]) -> list[list[Draft]]:
        """As `Proposal`."""
        previous_B = self.last_B
        drafts: list[list[Draft]] = [[] for _ in samplers]
        for slot in range(self.size):
            logits_BV = self.block.logits(slot, previous_B)
            for row, sampler, logits_V in zip(drafts, samplers, logits_BV, strict=True):
                row.append(_drawn(sampler, logits_V, is_next=slot == 0))
            previous_B = torch.tensor([row[-1].token for row in drafts], device=previous_B.device)
        return drafts


class DSparkDrafter:
    """DSpark stages: a block of tokens."""

    def __init__(self, model: DecodableModel):
        config = model.config
        assert config.dspark_block_size is not None, "the model has DSpark stages"
        assert config.dspark_target_layer_ids is not None, "the model has DSpark stages"
        self.size = config.dspark_block_size
        self._targets = config.dspark_target_layer_ids
        self._model = model

    def advance(self, tokens_BT: Tensor, cache: KVCache, counts: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """The stages read the means over the streams after some layers."""
        means = LayerMeans(self._targets)
        streams = self._model.advance(tokens_BT, cache, counts, means)
        return streams, means.joined()

    def read(self, features: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int]) -> None:
        """Fill the memory."""
        self._model.remember(features, cache, counts)

    def read_empty(self) -> None:
        """No effect: the memory is made without experts."""

    def propose(self, features: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int]) -> DSparkProposal:
        """The tokens after the last one of each row."""
        self._model.remember(features, cache, counts)
        last = [int(row[count - 1]) for row, count in zip(next_BT, counts, strict=True)]
        last_B = torch.tensor(last, device=next_BT.device)
        return DSparkProposal(self._model.draft(last_B, cache), last_B, self.size)

    def propose_empty(self) -> None:
        """As `Drafter`."""
        self._model.draft_empty()


def drafter_of(model: DecodableModel) -> Drafter | None:
    """The drafter that a model was loaded with, if it has one."""
    if len(model.mtp) == 0:
        return None
    return DSparkDrafter(model) if model.config.dspark_stages else MTPDrafter(model)


def _drawn(sampler: Sampler, logits_V: Tensor, is_next: bool = True) -> Draft:
    drafted_V = sampler.distribution(logits_V, is_next)
    return Draft(sampler.draw(drafted_V), drafted_V)
