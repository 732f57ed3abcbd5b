"""The forward pass of the whole model or of a pipeline stage of it: embedding, blocks, MTP block, head and losses.

`backbone` and `read_out` are the only places where tokens become hidden states; what is made of those (logits, losses,
scores) is the caller's choice.
Shapes: B rows, T tokens, S streams, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from seektune.model.block import Block
from seektune.model.config import DeepseekV4Config
from seektune.model.dspark import DSparkStage, LayerMeans
from seektune.model.gate import Gate, RoutingLedger
from seektune.model.head import (
    Head,
    HiddenStates,
    Losses,
    Taught,
    TokenScores,
    token_logits,
    token_loss,
    token_scores,
)
from seektune.model.hyper import HyperHead
from seektune.model.mtp import MTPBlock
from seektune.model.norm import RMSNorm
from seektune.model.numerics import numerics as named_numerics
from seektune.model.objective import CROSS_ENTROPY, Objective
from seektune.sequence import SequenceLayout, following


@dataclass(frozen=True)
class TokenRows:
    """Token ids of whole rows, int64, and the layout of those of their tokens that are on this device."""

    ids_BT: Tensor
    layout: SequenceLayout

    def tokens(self) -> Tensor:
        """Ids of the tokens here."""
        return self.layout.mine(self.ids_BT)

    def next_tokens(self) -> Tensor:
        """Ids of the tokens after those here; 0 after a row's last."""
        return self.layout.mine(following(self.ids_BT))


@dataclass(frozen=True)
class Activations:
    """The activations that one part of the model passes to the next."""

    streams_BTSD: Tensor
    next_embedding_BTD: Tensor | None = None
    """Embedding of the next token at each position, for the MTP block; None if it does not run."""


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

    The first part has the embedding; the last one has head and MTP block, or with `drafter` the DSpark stages of a
    config that has them. Parameters that the release keeps in F32 stay fp32.
    """

    def __init__(
        self,
        config: DeepseekV4Config,
        layers: Sequence[int],
        dtype: torch.dtype,
        numerics: str,
        first: bool,
        last: bool,
        drafter: bool = False,
    ):
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.numerics = numerics
        meta = torch.device("meta")
        chosen = named_numerics(numerics, config.index_head_dim)
        self.is_first = first
        self.is_last = last
        self.sequence: Callable[[Tensor], SequenceLayout] = SequenceLayout.from_documents
        """The layout of the tokens here, from the document numbers of whole rows; parallelism replaces it."""
        if self.is_first:
            self.embed = nn.Embedding(config.vocab_size, config.hidden_size, device=meta, dtype=dtype)
        self.layers = Blocks({layer: Block(config, layer, chosen, meta, dtype) for layer in layers})
        if self.is_last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, meta, dtype)
            self.head = Head(config.hidden_size, config.vocab_size, meta, dtype)
            self.hc_head = HyperHead(config, meta)
        ahead: list[Block] = []
        if self.is_last:
            ahead += [MTPBlock(config, chosen, meta, dtype) for _ in range(config.mtp_layers)]
        if self.is_last and drafter:
            ahead += [DSparkStage(config, stage, chosen, meta, dtype) for stage in range(config.dspark_stages)]
        self.mtp = nn.ModuleList(ahead)
        """The MTP block or the DSpark stages, by their name in the release."""

    def gates(self) -> dict[int, Gate]:
        """The gates of this part by layer id; those of `mtp` count on from `num_hidden_layers`."""
        return {block.ffn.layer: block.ffn.gate for block in self.blocks()}

    def blocks(self) -> Iterator[Block]:
        """The blocks of this part, those of `mtp` last."""
        yield from self.layers
        for block in self.mtp:
            assert isinstance(block, Block)
            yield block

    def is_adapted(self) -> bool:
        """Whether a module of this part has low-rank adapters, whose parameters are named `MODULE.lora.ADAPTER.A`."""
        return any(".lora." in f".{name}" for name, _ in self.named_parameters())

    def backbone(
        self,
        rows: TokenRows,
        mtp: bool = False,
        ledger: RoutingLedger | None = None,
        received: Activations | None = None,
        means: LayerMeans | None = None,
    ) -> Activations:
        """The streams after the blocks of this part.

        Args:
            rows: the tokens.
            mtp: whether the MTP block will run, at the end of this part or a later one.
            ledger: receives what the gates did.
            received: what the part before passed on; None for the first part, which starts from the embedding.
            means: receives the means over the streams after some layers, for a DSpark drafter.
        """
        x = self._embedded(rows, mtp) if received is None else received
        streams = x.streams_BTSD
        tokens = rows.tokens()
        for block in self.layers:
            streams = block(streams, tokens, rows.layout, ledger)
            if means is not None:
                means.record(block.ffn.layer, streams)
        return replace(x, streams_BTSD=streams)

    def read_out(self, x: Activations, rows: TokenRows, ledger: RoutingLedger | None = None) -> HiddenStates:
        """The hidden states at the end of the last part; the MTP block runs if next-token embeddings were passed."""
        main = self.hidden(x.streams_BTSD)
        if x.next_embedding_BTD is None:
            return HiddenStates(main, None)
        following_tokens = rows.next_tokens()
        ahead = self.look_ahead(x.streams_BTSD, x.next_embedding_BTD, following_tokens, rows.layout, ledger)
        return HiddenStates(main, ahead)

    def hidden(self, streams_BTSD: Tensor) -> Tensor:
        """The backbone's hidden states for the head, `[B, T, D]`."""
        return self.norm(self.hc_head(streams_BTSD))

    def look_ahead(
        self,
        streams: Tensor,
        next_embedding_BTD: Tensor,
        next_tokens_BT: Tensor,
        layout: SequenceLayout,
        ledger: RoutingLedger | None = None,
    ) -> Tensor:
        """The MTP block's hidden states for the head, `[B, T, D]`; position t has seen token t + 1."""
        return self.mtp[0](streams, next_embedding_BTD, next_tokens_BT, layout.followed(), ledger)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """fp32 `[B, T, V]`."""
        return token_logits(hidden_BTD, self.head.values())

    def losses(
        self,
        hidden: HiddenStates,
        layout: SequenceLayout,
        taught: Taught,
        objective: Objective = CROSS_ENTROPY,
        count: float | None = None,
    ) -> Losses:
        """The loss of the taught tokens over `count` (None: the divisor of `taught`), and that of the MTP block."""
        divisor = taught.divisor if count is None else count
        # an adapted head computes its weight for each loss, so that the order in which gradients add up is fixed
        main = objective.of_hidden(hidden.main_BTD, layout, taught, divisor, self.head.values())
        ahead = None
        if hidden.mtp_BTD is not None:
            ahead = token_loss(hidden.mtp_BTD, layout, taught, 2, self.head.values()) / taught.divisor
        return Losses(main.loss, ahead, main.parts)

    @torch.no_grad()
    def scores_of(self, hidden_BTD: Tensor, layout: SequenceLayout, labels_BT: Tensor) -> TokenScores:
        """Scores of the taught tokens, at the positions that predict them."""
        return self.scores_at(hidden_BTD, layout.targets(labels_BT, steps=1))

    @torch.no_grad()
    def scores_at(self, hidden_BTD: Tensor, targets_BT: Tensor) -> TokenScores:
        """Scores of the target of each token, `[B, T]`; -100 is not a target."""
        return token_scores(hidden_BTD, targets_BT, self.head.values())

    def _embedded(self, rows: TokenRows, mtp: bool) -> Activations:
        """`hc_mult` equal copies of each token's embedding `[B, T, S, D]`; with `mtp` that of the next token too."""
        streams = self.embed(rows.tokens()).unsqueeze(-2).repeat(1, 1, self.config.hc_mult, 1)
        return Activations(streams, self.embed(rows.next_tokens()) if mtp else None)
