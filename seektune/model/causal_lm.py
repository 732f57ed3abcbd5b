"""DeepSeek-V4 as a language model: embedding, blocks, head, losses, and the way in from a checkpoint folder.

Shapes: B rows, T tokens, S streams, D width, V vocabulary, N taught tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seektune.checkpoint import load_weights, locate, save_weights
from seektune.checkpoint.source import FolderSource
from seektune.kernels import upcast, vocabulary_loss
from seektune.model.adapters import is_adapted
from seektune.model.block import Block
from seektune.model.config import DeepseekV4Config
from seektune.model.frozen import pack
from seektune.model.gate import Gate, HashGate, RoutingLedger
from seektune.model.hyper import HyperHead
from seektune.model.initialize import initialize
from seektune.model.linear import Head
from seektune.model.mtp import MTPBlock
from seektune.model.norm import RMSNorm
from seektune.model.numerics import numerics as named_numerics
from seektune.model.stream import stream
from seektune.sequence import IGNORE_INDEX, SequenceLayout

INTEGERS = (torch.int64, torch.int32, torch.int16)
"""Dtypes of ids."""


@dataclass(frozen=True)
class CausalLMOutput:
    """What a forward pass was asked for; the rest is None."""

    logits: Tensor | None = None
    """fp32 `[B, T, V]`; row t predicts token t + 1."""
    loss: Tensor | None = None
    """Cross-entropy of the taught tokens, divided by their number or by `num_items_in_batch`."""
    mtp_logits: Tensor | None = None
    """fp32 `[B, T-1, V]`; row t has seen token t + 1 and predicts token t + 2."""
    mtp_loss: Tensor | None = None
    """The MTP block's cross-entropy, over the same divisor as `loss`."""


class DeepseekV4ForCausalLM(nn.Module):
    """DeepSeek-V4 for one device, with the released checkpoint's module names.

    Built on the meta device it allocates nothing; elsewhere every parameter is initialised. `numerics` is `plain`, or
    `released` to simulate the rounding that serving applies. Parameters that the release keeps in F32 stay fp32.
    """

    def __init__(
        self,
        config: DeepseekV4Config,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        numerics: str = "plain",
    ):
        super().__init__()
        self.config = config
        chosen = named_numerics(numerics, config.index_head_dim)
        meta = torch.device("meta")
        layers = range(config.num_hidden_layers)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size, device=meta, dtype=dtype)
        self.layers = nn.ModuleList([Block(config, layer, chosen, meta, dtype) for layer in layers])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, meta, dtype)
        self.head = Head(config.hidden_size, config.vocab_size, bias=False, device=meta, dtype=dtype)
        self.hc_head = HyperHead(config, meta)
        mtp_blocks = range(config.num_nextn_predict_layers)
        self.mtp = nn.ModuleList([MTPBlock(config, chosen, meta, dtype) for _ in mtp_blocks])
        place = torch.device(device) if device is not None else torch.get_default_device()
        if place != meta:
            self.to_empty(device=place)
            initialize(self.state_dict(), config)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: torch.dtype = torch.float32,
        numerics: str = "plain",
        device: torch.device | str = "cpu",
        packed: bool = False,
        streamed: bool = False,
    ) -> "DeepseekV4ForCausalLM":
        """Read a folder or Hub id in the released layout: FP4, FP8, BF16 or F32 tensors as found on disk.

        Peak memory is the model and one tensor. `packed` keeps what is FP4 or FP8 on disk in those bytes, untrainable,
        to be multiplied out while it is used; everything else gets `dtype`. `streamed`, with `packed`, leaves those
        bytes in the folder's files, from which they come block by block; they are not searched for NaN.

        Raises:
            ValueError: the folder, its config.json or a tensor is missing, unexpected, of the wrong shape or type, or
                damaged; the sentence names it.
        """
        folder = locate(source)
        model = cls(DeepseekV4Config.from_pretrained(folder), device="meta", dtype=dtype, numerics=numerics)
        if packed:
            pack(model, FolderSource(folder).kind)
        if packed and streamed:
            stream(model, folder, [*model.layers, *model.mtp])
        else:
            model.to_empty(device=device)
            load_weights(model.state_dict(), folder)
        for layer, gate in model.gates().items():
            if isinstance(gate, HashGate) and not gate.is_valid():
                raise ValueError(f"{folder}: layers.{layer}.ffn.gate.tid2eid names an expert that does not exist")
        return model

    def save_pretrained(self, folder: str | Path, format: str = "bf16", original: str | Path | None = None) -> None:
        """Write config.json and safetensors under released names; the folder appears only when it is complete.

        Args:
            folder: a new or empty folder.
            format: `bf16`, `fp32`, `released` (FP4 experts, FP8), `fp8` or `base` (FP8 with F32 scales). Tensors that
                the release keeps in F32 or I64 are stored as such in every format.
            original: the checkpoint that training started from; tensors still equal to it keep its bytes.

        Raises:
            ValueError: the format is unknown, the folder exists and is not empty, or the model carries adapters.
            OSError: writing failed, for example because the disk is full; nothing is left behind.
        """
        if is_adapted(self):
            raise ValueError("the model carries adapters: save those with save_adapter, or merge them (seektune merge)")
        config = {"model_type": self.config.model_type, **self.config.to_dict()}
        before = None if original is None else locate(original)
        save_weights(self.state_dict(), config, Path(folder), format, before)

    def gates(self) -> dict[int, Gate]:
        """Every gate by layer id; the MTP block's id is `num_hidden_layers`."""
        blocks = [*self.layers, *self.mtp]
        return {layer: block.ffn.gate for layer, block in enumerate(blocks)}

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        documents: Tensor | None = None,
        mtp: bool = False,
        with_logits: bool = True,
        num_items_in_batch: Tensor | int | None = None,
        ledger: RoutingLedger | None = None,
    ) -> CausalLMOutput:
        """Logits, and losses where `labels` are given; all arguments int64 `[B, T]`.

        Args:
            input_ids: token ids.
            labels: unshifted; -100 is not taught, nor is the first token of a document.
            documents: document number of each token of packed rows, 0 for padding; one document per row if None.
            mtp: run the MTP block too.
            with_logits: False computes the losses in chunks, so that whole logits never exist.
            num_items_in_batch: divisor of the losses; the number of taught tokens if None.
            ledger: receives what the gates did.

        Raises:
            ValueError: shapes do not fit, an id is outside the vocabulary, or the model has no MTP block.
        """
        self._check(input_ids, labels, documents, mtp)
        input_ids = input_ids.long()
        layout = (
            SequenceLayout.single(input_ids.shape[0], input_ids.shape[1], input_ids.device)
            if documents is None
            else SequenceLayout.from_documents(documents)
        )
        streams = self.streams(input_ids, layout, ledger)
        hidden = self.norm(self.hc_head(streams))
        ahead = self.look_ahead(streams, input_ids, layout, ledger) if mtp else None
        loss = mtp_loss = None
        if labels is not None:
            labels = labels.long()
            targets = _targets(labels, layout, steps=1)
            divisor = (targets != IGNORE_INDEX).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = self._loss(hidden[:, :-1], targets) / divisor
            if ahead is not None:
                mtp_loss = self._loss(ahead[:, :-1], _targets(labels, layout, steps=2)) / divisor
        return CausalLMOutput(
            logits=self._logits(hidden) if with_logits else None,
            loss=loss,
            mtp_logits=self._logits(ahead) if with_logits and ahead is not None else None,
            mtp_loss=mtp_loss,
        )

    def streams(self, input_ids: Tensor, layout: SequenceLayout, ledger: RoutingLedger | None = None) -> Tensor:
        """The backbone: `hc_mult` equal copies of the embedding through all blocks, `[B, T, S, D]`."""
        streams = self.embed(input_ids).unsqueeze(-2).repeat(1, 1, self.config.hc_mult, 1)
        for block in self.layers:
            streams = block(streams, input_ids, layout, ledger)
        return streams

    def look_ahead(
        self, streams: Tensor, input_ids: Tensor, layout: SequenceLayout, ledger: RoutingLedger | None = None
    ) -> Tensor:
        """Normed hidden states of the MTP block, `[B, T-1, D]`."""
        following = input_ids[:, 1:]
        block = self.mtp[0]
        assert isinstance(block, MTPBlock)
        return block.predict(streams[:, :-1], self.embed(following), following, layout.followed(), ledger)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(upcast(hidden), upcast(self.head.values()))

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        taught = targets != IGNORE_INDEX
        return vocabulary_loss(hidden[taught], self.head.values(), targets[taught])

    def _check(self, input_ids: Tensor, labels: Tensor | None, documents: Tensor | None, mtp: bool) -> None:
        for name, tensor in (("input_ids", input_ids), ("labels", labels), ("documents", documents)):
            if tensor is not None and tensor.dtype not in INTEGERS:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"{name} must be integers (int64), not {kind}")
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            raise ValueError(f"input_ids must have shape [rows, tokens] and not be empty, not {list(input_ids.shape)}")
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"input_ids span {low} to {high}, outside the vocabulary of {self.config.vocab_size} ids")
        for name, other in (("labels", labels), ("documents", documents)):
            if other is not None and other.shape != input_ids.shape:
                raise ValueError(f"{name} have shape {list(other.shape)}, input_ids {list(input_ids.shape)}")
        if labels is not None and bool(
            ((labels < 0) & (labels != IGNORE_INDEX) | (labels >= self.config.vocab_size)).any()
        ):
            raise ValueError(f"labels must be {IGNORE_INDEX} (not taught) or ids below {self.config.vocab_size}")
        if mtp and not self.mtp:
            raise ValueError("this model has no MTP block (num_nextn_predict_layers is 0)")


def _targets(labels: Tensor, layout: SequenceLayout, steps: int) -> Tensor:
    """The label `steps` tokens ahead, `[B, T - steps]`; -100 where another document lies between."""
    joined = layout.joined()
    inside = joined if steps == 1 else joined[:, :-1] & joined[:, 1:]
    return torch.where(inside, labels[:, steps:], IGNORE_INDEX)
