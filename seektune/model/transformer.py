"""A run of consecutive blocks with what stands before the first and after the last: the whole model, or a stage of it.

Shapes: B rows, T tokens, S streams, D width, V vocabulary, N taught tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seektune.kernels import linear, linear_cross_entropy, upcast
from seektune.model.block import Block
from seektune.model.config import DeepseekV4Config
from seektune.model.gate import Gate, RoutingLedger
from seektune.model.hyper import HyperHead
from seektune.model.linear import Head
from seektune.model.mtp import MTPBlock
from seektune.model.norm import RMSNorm
from seektune.model.numerics import numerics as named_numerics
from seektune.sequence import IGNORE_INDEX, SequenceLayout

CHUNK = 1024
"""Tokens whose logits exist at one time in an exam."""


@dataclass(frozen=True)
class Taught:
    """What a row teaches: labels of all its tokens, unshifted, -100 for none; and what the losses are divided by."""

    labels_BT: Tensor
    divisor: Tensor | int


@dataclass(frozen=True)
class Losses:
    """Cross-entropies over the divisor of `Taught`."""

    loss: Tensor
    """Of the tokens here, each predicting the next."""
    mtp: Tensor | None
    """Of the MTP block, each predicting the one after that; None where it did not run."""


@dataclass(frozen=True)
class TokenScores:
    """How likely a model finds the taught tokens of rows; each stands where it is predicted."""

    losses_BT: Tensor
    """Negative log-likelihood in nats, fp32; 0 where nothing is taught."""
    first_BT: Tensor
    """Whether it is the model's first choice, bool."""


class Blocks(nn.Module):
    """Blocks by layer id, which is also their name."""

    def __init__(self, blocks: dict[int, Block]):
        super().__init__()
        for layer, block in blocks.items():
            self.add_module(str(layer), block)

    def __getitem__(self, layer: int) -> Block:
        block = self.get_submodule(str(layer))
        assert isinstance(block, Block)
        return block

    def __iter__(self) -> Iterator[Block]:
        return (self[int(name)] for name in self._modules)

    def __len__(self) -> int:
        return len(self._modules)


class TransformerPart(nn.Module):
    """The layers `layers` of DeepSeek-V4, with the released checkpoint's module names, on the meta device.

    The first part has the embedding; the last one has head and MTP block.
    Parameters that the release keeps in F32 stay fp32.
    """

    def __init__(
        self, config: DeepseekV4Config, layers: range, dtype: torch.dtype, numerics: str, first: bool, last: bool
    ):
        super().__init__()
        self.config = config
        self.dtype = dtype
        meta = torch.device("meta")
        chosen = named_numerics(numerics, config.index_head_dim)
        self.is_first = first
        self.is_last = last
        self.sequence: Callable[[Tensor], SequenceLayout] = SequenceLayout.from_documents
        """The `sequence` socket: the layout of the tokens here, from the document numbers of whole rows."""
        if self.is_first:
            self.embed = nn.Embedding(config.vocab_size, config.hidden_size, device=meta, dtype=dtype)
        self.layers = Blocks({layer: Block(config, layer, chosen, meta, dtype) for layer in layers})
        if self.is_last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, meta, dtype)
            self.head = Head(config.hidden_size, config.vocab_size, meta, dtype)
            self.hc_head = HyperHead(config, meta)
        ahead = range(config.num_nextn_predict_layers if self.is_last else 0)
        self.mtp = nn.ModuleList([MTPBlock(config, chosen, meta, dtype) for _ in ahead])

    def gates(self) -> dict[int, Gate]:
        """Every gate here by layer id; the MTP block's id is `num_hidden_layers`."""
        return {block.ffn.layer: block.ffn.gate for block in self.blocks()}

    def blocks(self) -> Iterator[Block]:
        """Every block here, the MTP block last."""
        yield from self.layers
        for block in self.mtp:
            assert isinstance(block, MTPBlock)
            yield block

    def is_adapted(self) -> bool:
        """Whether a module here carries low-rank adapters, whose parameters are named `MODULE.lora.ADAPTER.A`."""
        return any(".lora." in f".{name}" for name, _ in self.named_parameters())

    def enter(self, tokens_BT: Tensor) -> Tensor:
        """`hc_mult` equal copies of the embedding, `[B, T, S, D]`."""
        return self.embed(tokens_BT).unsqueeze(-2).repeat(1, 1, self.config.hc_mult, 1)

    def run(self, streams: Tensor, tokens_BT: Tensor, layout: SequenceLayout, ledger: RoutingLedger | None) -> Tensor:
        """Streams `[B, T, S, D]` through the blocks of the backbone that are here."""
        for block in self.layers:
            streams = block(streams, tokens_BT, layout, ledger)
        return streams

    def hidden(self, streams: Tensor) -> Tensor:
        """What the head reads, `[B, T, D]`."""
        return self.norm(self.hc_head(streams))

    def look_ahead(
        self,
        streams: Tensor,
        next_embedding_BTD: Tensor,
        next_tokens_BT: Tensor,
        layout: SequenceLayout,
        ledger: RoutingLedger | None,
    ) -> Tensor:
        """What the head reads of the MTP block, `[B, T, D]`; row t has seen token t + 1."""
        return self.mtp[0](streams, next_embedding_BTD, next_tokens_BT, layout.followed(), ledger)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """fp32 `[B, T, V]`."""
        return linear(upcast(hidden_BTD), upcast(self.head.values()))

    def losses(self, hidden_BTD: Tensor, ahead_BTD: Tensor | None, layout: SequenceLayout, taught: Taught) -> Losses:
        """Cross-entropies of what was read, in chunks of tokens: whole logits never exist."""
        loss = self._loss(hidden_BTD, layout, taught, steps=1)
        return Losses(loss, None if ahead_BTD is None else self._loss(ahead_BTD, layout, taught, steps=2))

    @torch.no_grad()
    def scores_of(self, hidden_BTD: Tensor, layout: SequenceLayout, labels_BT: Tensor) -> TokenScores:
        """How likely the taught tokens are, each predicted by the token here before it."""
        return self.scores_at(hidden_BTD, layout.targets(labels_BT, steps=1))

    @torch.no_grad()
    def scores_at(self, hidden_BTD: Tensor, targets: Tensor) -> TokenScores:
        """How likely the target of each token here is, `[B, T]`, -100 for none."""
        taught = targets != IGNORE_INDEX
        losses_BT = torch.zeros(targets.shape, device=targets.device)
        first_BT = torch.zeros_like(taught)
        losses = []
        first = []
        for x, y in zip(hidden_BTD[taught].split(CHUNK), targets[taught].split(CHUNK), strict=True):
            logits = self.logits(x)
            losses.append(F.cross_entropy(logits, y, reduction="none").float())
            first.append(logits.argmax(-1) == y)
        losses_BT[taught], first_BT[taught] = torch.cat(losses), torch.cat(first)
        return TokenScores(losses_BT, first_BT)

    def _loss(self, hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, steps: int) -> Tensor:
        hidden_ND, targets_N = layout.taught(hidden_BTD, layout.targets(taught.labels_BT, steps))
        return linear_cross_entropy(hidden_ND, self.head.values(), targets_N) / taught.divisor
