"""DeepSeek-V4 as a language model: tokens in, logits and losses out, and the way in from a checkpoint folder.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint import load_weights, locate, save_weights
from seektune.checkpoint.source import FolderSource
from seektune.model.adapters import is_adapted
from seektune.model.config import DeepseekV4Config
from seektune.model.frozen import pack
from seektune.model.gate import Gate, HashGate, RoutingLedger
from seektune.model.initialize import initialize
from seektune.model.part import ModelPart, Taught, TokenScores
from seektune.model.stream import stream
from seektune.sequence import IGNORE_INDEX, Batch, following

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


class DeepseekV4ForCausalLM(ModelPart):
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
        super().__init__(config, range(config.num_hidden_layers), dtype, numerics, first=True, last=True)
        place = torch.device(device) if device is not None else torch.get_default_device()
        if place.type != "meta":
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
            stream(model, folder, [*model.blocks()])
        else:
            model.to_empty(device=device)
            load_weights(model.state_dict(), folder)
        check_tables(model.gates(), folder)
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
        layout = self.sequence(torch.ones_like(input_ids) if documents is None else documents)
        tokens = layout.mine(input_ids)
        streams = self.run(self.enter(tokens), tokens, layout, ledger)
        hidden, ahead = self.hidden(streams), None
        if mtp:
            after = layout.mine(following(input_ids))
            ahead = self.look_ahead(streams, self.embed(after), after, layout, ledger)
        losses = None
        if labels is not None:
            labels = labels.long()
            count = (layout.targets(labels, steps=1) != IGNORE_INDEX).sum().clamp(min=1)
            taught = Taught(labels, count if num_items_in_batch is None else num_items_in_batch)
            losses = self.losses(hidden, ahead, layout, taught)
        return CausalLMOutput(
            logits=self.logits(hidden) if with_logits else None,
            loss=None if losses is None else losses.loss,
            mtp_logits=self.logits(ahead[:, :-1]) if with_logits and ahead is not None else None,
            mtp_loss=None if losses is None else losses.mtp,
        )

    @torch.no_grad()
    def score(self, batch: Batch) -> TokenScores:
        """How likely the taught tokens of rows are, `[B, T]`; whole logits never exist."""
        batch = batch.to(self.embed.weight.device)
        layout = self.sequence(batch.documents)
        tokens = layout.mine(batch.tokens)
        hidden = self.hidden(self.run(self.enter(tokens), tokens, layout, None))
        return self.scores_of(hidden, layout, batch.labels)

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


def check_tables(gates: Mapping[int, Gate], folder: Path) -> None:
    """Check the tables of hash gates that were read from a folder.

    Raises:
        ValueError: one names an expert that does not exist.
    """
    for layer, gate in gates.items():
        if isinstance(gate, HashGate) and not gate.is_valid():
            raise ValueError(f"{folder}: layers.{layer}.ffn.gate.tid2eid names an expert that does not exist")
