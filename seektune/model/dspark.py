"""DSpark, the drafter of the releases after the preview: blocks that propose several tokens from the backbone's layers.

The backbone's outputs after some layers become memory; a draft is a block of rows that reads the memory and itself,
without causal order, and a Markov head that makes each proposal depend on the one before it (DeepSeek's DSpark paper).
Shapes: B rows, T tokens, A tokens of a draft, N remembered tokens, S streams, D width, H heads, C head width,
M target layers, R rank of the Markov head, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from seektune.kernels import upcast
from seektune.model.attention import Attention
from seektune.model.block import Block
from seektune.model.config import DeepseekV4Config
from seektune.model.hyper import HyperHead
from seektune.model.linear import Linear, WideLinear
from seektune.model.norm import RMSNorm
from seektune.model.numerics import Numerics
from seektune.model.rope import Rotation
from seektune.sequence import SequenceLayout


class LayerMeans:
    """Receives the mean over the streams after each of some layers, in a forward pass of the backbone."""

    def __init__(self, layers: Sequence[int]):
        self._layers = layers
        self._means: dict[int, Tensor] = {}

    def record(self, layer: int, streams_BTSD: Tensor) -> None:
        """Keep the mean `[B, T, D]` of a layer, if it is one of those."""
        if layer in self._layers:
            self._means[layer] = streams_BTSD.mean(dim=-2)

    def joined(self) -> Tensor:
        """The means side by side, in the order of the layers, `[B, T, M * D]`."""
        return torch.cat([self._means[layer] for layer in self._layers], dim=-1)


@dataclass(frozen=True)
class DraftLayout(SequenceLayout):
    """The tokens of a draft and, for each stage, the keys of the remembered tokens before it."""

    memories: Sequence[Tensor]
    """Rotated keys of each stage, `[B, N, C]`."""
    known_BN: Tensor
    """Whether there is a token: False before the start of the text."""
    first: int
    """Layer id of the first stage."""

    def at(self, layer: int) -> "DraftLayout":
        """The layout with the memory of that stage only."""
        return replace(self, memories=[self.memories[layer - self.first]], first=layer)


class DSparkAttention(Attention):
    """Attention of a draft: every query sees all remembered tokens and all tokens of its block."""

    def memory_keys(self, memory_BTD: Tensor, rotation: Rotation) -> Tensor:
        """Keys `[B, T, C]` of remembered tokens, as the cache stores them; there is no norm before `wkv`."""
        return self.numerics.keep(rotation(self.kv_norm(self.wkv(memory_BTD))), self.rope_dim)

    def attend(
        self,
        x_BTD: Tensor,
        q_residual_BTR: Tensor,
        q_BTHC: Tensor,
        keys_BTC: Tensor,
        rotation: Rotation,
        layout: SequenceLayout,
    ) -> Tensor:
        """`[B, A, H, C]`: one softmax over memory, block and sink; keys are also the values."""
        assert isinstance(layout, DraftLayout)
        (memory_BNC,) = layout.memories
        keys_BKC = torch.cat([memory_BNC.to(keys_BTC.dtype), self.numerics.keep(keys_BTC, self.rope_dim)], dim=1)
        keys_BKC = upcast(keys_BKC)
        scores_BTHK = torch.einsum("bthc,bkc->bthk", upcast(q_BTHC), keys_BKC) * self.width**-0.5
        unknown_BN = ~layout.known_BN[:, None, None]
        memory = scores_BTHK[..., : unknown_BN.shape[-1]].masked_fill(unknown_BN, -torch.inf)
        sink = self.attn_sink.to(scores_BTHK.dtype).expand(*scores_BTHK.shape[:3])[..., None]
        logits = torch.cat([memory, scores_BTHK[..., unknown_BN.shape[-1] :], sink], dim=-1)
        weights_BTHK = logits.softmax(dim=-1)[..., :-1].to(q_BTHC.dtype)
        return torch.einsum("bthk,bkc->bthc", upcast(weights_BTHK), keys_BKC).to(q_BTHC.dtype)


class MarkovHead(nn.Module):
    """A low-rank table of what follows each token: the part of a proposal's logits that depends on the one before."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None, dtype: torch.dtype):
        super().__init__()
        assert config.dspark_markov_rank is not None, "the config has the keys of DSpark"
        self.markov_w1 = nn.Embedding(config.vocab_size, config.dspark_markov_rank, device=device, dtype=dtype)
        self.markov_w2 = WideLinear(config.dspark_markov_rank, config.vocab_size, device, dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits after each token, fp32 `[..., V]`."""
        return self.markov_w2(self.markov_w1(tokens))


class ConfidenceHead(nn.Module):
    """Logit of the chance that a proposal is accepted, given that those before it are."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None, dtype: torch.dtype):
        super().__init__()
        assert config.dspark_markov_rank is not None, "the config has the keys of DSpark"
        self.proj = WideLinear(config.hidden_size + config.dspark_markov_rank, 1, device, dtype)

    def forward(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """fp32 `[...]` from hidden states before the norm `[..., D]` and rows of `markov_w1` `[..., R]`."""
        return self.proj(torch.cat([hidden, previous], dim=-1)).squeeze(-1)


class DSparkStage(Block):
    """A block of the drafter; the first one also makes the memory, the last one has the heads."""

    attn: DSparkAttention

    def __init__(
        self, config: DeepseekV4Config, stage: int, numerics: Numerics, device: torch.device | None, dtype: torch.dtype
    ):
        layer = config.num_hidden_layers + stage
        super().__init__(config, layer, numerics, device, dtype)
        self.attn = DSparkAttention(config, config.ratio(layer), numerics, device, dtype)
        self.streams = config.hc_mult
        width = config.hidden_size
        if stage == 0:
            self.main_proj = Linear(len(target_layers(config)) * width, width, device, dtype)
            self.main_norm = RMSNorm(width, config.rms_norm_eps, device, dtype)
        if stage == config.dspark_stages - 1:
            self.norm = RMSNorm(width, config.rms_norm_eps, device, dtype)
            self.hc_head = HyperHead(config, device)
            self.markov_head = MarkovHead(config, device, dtype)
            self.confidence_head = ConfidenceHead(config, device, dtype)

    def memory(self, means_BTM: Tensor) -> Tensor:
        """What the stages remember of each token, `[B, T, D]`, from the backbone's `LayerMeans`; first stage only."""
        return self.main_norm(self.main_proj(means_BTM))


@dataclass(frozen=True)
class DraftBlock:
    """The block of a draft, from which its tokens are chosen one after the other."""

    unary_BAV: Tensor
    """Logits of each slot without the Markov head, fp32; slot k proposes the token after the k-th."""
    hidden_BAD: Tensor
    """Hidden states before the last norm."""
    last: DSparkStage

    @torch.no_grad()
    def logits(self, slot: int, previous_B: Tensor) -> Tensor:
        """Logits of a slot, fp32 `[B, V]`, given the tokens before it: the anchors, or the last proposals."""
        return self.unary_BAV[:, slot] + self.last.markov_head(previous_B)

    @torch.no_grad()
    def confidence(self, slot: int, previous_B: Tensor) -> Tensor:
        """Chance that a slot's proposal is accepted given that those before it are, fp32 `[B]`."""
        row = self.last.markov_head.markov_w1(previous_B)
        return self.last.confidence_head(self.hidden_BAD[:, slot], row).sigmoid()


def target_layers(config: DeepseekV4Config) -> tuple[int, ...]:
    """The layers of the backbone whose outputs the drafter remembers."""
    assert config.dspark_target_layer_ids is not None, "the config has the keys of DSpark"
    return config.dspark_target_layer_ids


def draft_ids(config: DeepseekV4Config, anchors_B: Tensor) -> Tensor:
    """Ids of a draft's tokens, `[B, A]`: the last known token, and placeholders for those to come."""
    assert config.dspark_block_size is not None, "the config has the keys of DSpark"
    assert config.dspark_noise_token_id is not None, "the config has the keys of DSpark"
    ids = anchors_B[:, None].repeat(1, config.dspark_block_size)
    ids[:, 1:] = config.dspark_noise_token_id
    return ids


def run_stages(
    stages: Sequence[DSparkStage], embed: nn.Embedding, ids_BA: Tensor, layout: DraftLayout
) -> tuple[Tensor, Tensor]:
    """Hidden states `[B, A, D]` of a draft: before the last norm, and after it for the head.

    Every stream begins as the embedding of its token.
    """
    streams_BASD = embed(ids_BA).unsqueeze(-2).repeat(1, 1, stages[0].streams, 1)
    for stage in stages:
        streams_BASD = stage(streams_BASD, ids_BA, layout, None)
    hidden_BAD = stages[-1].hc_head(streams_BASD)
    return hidden_BAD, stages[-1].norm(hidden_BAD)
