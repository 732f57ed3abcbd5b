"""The training loss of DSpark stages: drafts from random anchors of a text, against the backbone's own distributions.

`L = sum_k w_k (0.1 CE_k + 0.9 |p_d - p_t|_1 + BCE(sigmoid(a_k), c_k))` with `c_k = 1 - |p_d - p_t|_1 / 2`, the chance
that the proposal of slot k is accepted, and `w_k = exp(-(k - 1) / size)` (DeepSeek's DSpark paper). The backbone,
embedding and head are frozen. Shapes: B rows, T tokens, N anchors, A slots of a draft, W remembered tokens, S streams,
D width, C head width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import exp
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seektune.kernels import linear, upcast
from seektune.model.attach_loss import with_gradients
from seektune.model.config import DeepseekV4Config
from seektune.model.dspark import DraftLayout, DSparkStage, draft_ids, run_stages
from seektune.model.dspark_config import CHUNK
from seektune.sequence import IGNORE_INDEX, SequenceLayout

CROSS_ENTROPY = 0.1
DISTANCE = 0.9


@dataclass(frozen=True)
class Anchors:
    """Tokens from which drafts are trained, int64 `[N]` each: their rows, and their places in them."""

    row_N: Tensor
    place_N: Tensor

    def chunk(self, number: int) -> "Anchors":
        """The chunk with that number, from 0; empty beyond the last."""
        part = slice(number * CHUNK, (number + 1) * CHUNK)
        return Anchors(self.row_N[part], self.place_N[part])


@dataclass(frozen=True)
class DraftRows:
    """Whole rows, and what the frozen backbone makes of them."""

    tokens_BT: Tensor
    labels_BT: Tensor
    """Unshifted; -100 is not taught."""
    layout: SequenceLayout
    means_BTM: Tensor
    """`LayerMeans.joined`, without graph."""
    hidden_BTD: Tensor
    """The backbone's input of the head, without graph."""


@dataclass(frozen=True)
class DraftTargets:
    """What the slots of drafts should propose."""

    previous_NA: Tensor
    """The token before the proposal of each slot: the anchor, then the text's next tokens."""
    target_NA: Tensor
    """The token of the text; -100 where a slot is not trained: beyond the document, or not taught."""
    teacher_NAD: Tensor
    """The backbone's input of the head at the token before."""


@dataclass(frozen=True)
class DraftLosses:
    """The loss of a chunk or a micro-batch, and its parts, over a divisor of the whole step."""

    loss: Tensor
    cross_entropy: Tensor
    distance: Tensor
    """Half the L1 distance of the distributions: 1 minus the chance of acceptance."""
    confidence: Tensor

    def __add__(self, other: "DraftLosses") -> "DraftLosses":
        """The sum, part by part."""
        return DraftLosses(
            self.loss + other.loss,
            self.cross_entropy + other.cross_entropy,
            self.distance + other.distance,
            self.confidence + other.confidence,
        )


def choose_anchors(layout: SequenceLayout, labels_BT: Tensor, count: int, seed: int) -> Anchors:
    """Up to `count` tokens whose next token is taught, at random without repetition; the same for the same seed."""
    candidates = (layout.targets(labels_BT, steps=1) != IGNORE_INDEX).nonzero()
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed % 2**63))[:count]
    chosen = candidates[order.sort().values.to(candidates.device)]
    return Anchors(chosen[:, 0], chosen[:, 1])


@dataclass(frozen=True)
class Drafting:
    """The stages that are trained on some rows, and the frozen parts of the model that their drafts use."""

    stages: Sequence[DSparkStage]
    embed: nn.Embedding
    head_VD: Tensor
    config: DeepseekV4Config
    rows: DraftRows

    def keys(self) -> list[Tensor]:
        """What each stage remembers of the rows, `[B, T, C]`."""
        memory_BTD = self.stages[0].memory(self.rows.means_BTM)
        rotation = self.rows.layout.at_positions(self.stages[0].attn.rope)
        return [stage.attn.memory_keys(memory_BTD, rotation) for stage in self.stages]

    def losses(self, anchors: Anchors, keys: Sequence[Tensor], divisor: float) -> DraftLosses:
        """The losses of all slots of the drafts from some anchors; `divisor` is of the sum over anchors and slots."""
        targets = _targets(self.config, self.rows, anchors)
        block = _drafts(self.stages, self.embed, self.config, keys, self.rows, anchors)
        return DraftLosses(*_slot_losses(self.stages[-1], self.head_VD, *block, targets, divisor))


def draft_losses(drafting: Drafting, anchors: Anchors, divisor: float) -> DraftLosses:
    """The losses of the drafts from some anchors, all of them in one graph."""
    return drafting.losses(anchors, drafting.keys(), divisor)


def backward_in_chunks(drafting: Drafting, anchors: Anchors, divisor: float, chunks: int = 1) -> DraftLosses:
    """The same losses, with a backward after each chunk of anchors: memory does not grow with their number.

    Each chunk adds its gradients to the parameters, as for a loss whose gradient is 1. What is left for backward of the
    returned loss is the gradient of the memory.

    Args:
        drafting: what is trained, on which rows.
        anchors: where drafts begin.
        divisor: of the sum over anchors and slots, weights included.
        chunks: least number of forward passes of the stages, of which the last may be without anchors: processes that
            share experts or gradients run equally many.
    """
    keys = drafting.keys()
    known = [key.detach().requires_grad_() for key in keys]
    numbers = range(max(chunks, passes(len(anchors.row_N))))
    total = reduce(add, [_backward(drafting.losses(anchors.chunk(number), known, divisor)) for number in numbers])
    return replace(total, loss=with_gradients(total.loss, keys, [key.grad for key in known if key.grad is not None]))


def _backward(losses: DraftLosses) -> DraftLosses:
    """Run backward; the same losses without a graph."""
    losses.loss.backward()
    return replace(losses, loss=losses.loss.detach())


def passes(anchors: int) -> int:
    """Forward passes of the stages for so many anchors."""
    return -(-anchors // CHUNK)


def slot_weights(size: int, device: torch.device | None = None) -> Tensor:
    """`w_k` of each slot, fp32 `[A]`."""
    return torch.exp(-torch.arange(size, device=device, dtype=torch.float32) / size)


def total_weight(size: int) -> float:
    """The sum of `slot_weights`."""
    return sum(exp(-slot / size) for slot in range(size))


def _drafts(
    stages: Sequence[DSparkStage],
    embed: nn.Embedding,
    config: DeepseekV4Config,
    keys_BTC: Sequence[Tensor],
    rows: DraftRows,
    anchors: Anchors,
) -> tuple[Tensor, Tensor]:
    """Hidden states `[N, A, D]` of the drafts, before and after the last norm."""
    tokens_BT = rows.tokens_BT
    back_W = torch.arange(config.sliding_window, 0, -1, device=tokens_BT.device)
    position_N = rows.layout.positions[anchors.row_N, anchors.place_N]
    places_NW = (anchors.place_N[:, None] - back_W).clamp(min=0)
    ids_NA = draft_ids(config, tokens_BT[anchors.row_N, anchors.place_N])
    positions_NA = position_N[:, None] + torch.arange(ids_NA.shape[1], device=ids_NA.device)
    memories = [keys[anchors.row_N[:, None], places_NW] for keys in keys_BTC]
    known_NW = back_W <= position_N[:, None]
    first = config.num_hidden_layers
    draft = DraftLayout(positions_NA, torch.ones_like(positions_NA), memories, known_NW, first)
    return run_stages(stages, embed, ids_NA, draft)


def _targets(config: DeepseekV4Config, rows: DraftRows, anchors: Anchors) -> DraftTargets:
    assert config.dspark_block_size is not None, "the config has the keys of DSpark"
    tokens_BT = rows.tokens_BT
    length = tokens_BT.shape[1]
    places_NA = anchors.place_N[:, None] + torch.arange(config.dspark_block_size, device=tokens_BT.device)
    inside_NA = places_NA < length
    places_NA = places_NA.clamp(max=length - 1)
    rows_N1 = anchors.row_N[:, None]
    # a slot is trained only if all tokens from the anchor to its own are of one document
    documents_BT = rows.layout.documents
    same = documents_BT[rows_N1, places_NA] == documents_BT[anchors.row_N, anchors.place_N][:, None]
    next_BT = rows.layout.targets(rows.labels_BT, steps=1)
    target_NA = next_BT[rows_N1, places_NA].masked_fill(~(inside_NA & same), IGNORE_INDEX)
    return DraftTargets(tokens_BT[rows_N1, places_NA], target_NA, rows.hidden_BTD[rows_N1, places_NA])


def _slot_losses(
    last: DSparkStage, head_VD: Tensor, hidden_NAD: Tensor, normed_NAD: Tensor, targets: DraftTargets, divisor: float
) -> tuple[Tensor, ...]:
    """Loss, cross-entropy, distance and confidence loss, each summed over anchors and weighted slots."""
    head_VD = upcast(head_VD)
    logits_NAV = linear(upcast(normed_NAD), head_VD) + last.markov_head(targets.previous_NA)
    with torch.no_grad():
        teacher_NAV = linear(upcast(targets.teacher_NAD), head_VD).softmax(dim=-1)
    trained_NA = targets.target_NA != IGNORE_INDEX
    weights_NA = slot_weights(trained_NA.shape[1], trained_NA.device) * trained_NA / divisor
    entropy_NA = F.cross_entropy(logits_NAV.flatten(0, 1), targets.target_NA.flatten(), reduction="none")
    distance_NA = (logits_NAV.softmax(dim=-1) - teacher_NAV).abs().sum(dim=-1)
    accepted_NA = (1 - distance_NA / 2).detach()
    # the confidence head reads the states before the norm, as the released one does
    guess_NA = last.confidence_head(hidden_NAD, last.markov_head.markov_w1(targets.previous_NA))
    confidence_NA = F.binary_cross_entropy_with_logits(guess_NA, accepted_NA, reduction="none")
    entropy = (weights_NA * entropy_NA.view_as(weights_NA)).sum()
    distance = (weights_NA * distance_NA).sum()
    confidence = (weights_NA * confidence_NA).sum()
    loss = CROSS_ENTROPY * entropy + DISTANCE * distance + confidence
    return loss, entropy.detach(), distance.detach() / 2, confidence.detach()
