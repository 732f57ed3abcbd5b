"""DeepSeek-V4 as a language model: tokens in, logits and losses out, and the way in from a checkpoint folder.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint import load_weights, locate, save_weights
from seektune.checkpoint.source import FolderSource
from seektune.model.config import DeepseekV4Config
from seektune.model.gate import RoutingLedger, check_tables
from seektune.model.initialize import initialize
from seektune.model.kv_cache.cache import ROLLBACK, KVCache
from seektune.model.offload import stream_from_disk
from seektune.model.quantized import quantize_modules
from seektune.model.transformer import Taught, TokenScores, TransformerPart
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


class DeepseekV4ForCausalLM(TransformerPart):
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
        quantized: bool = False,
        streamed: bool = False,
    ) -> "DeepseekV4ForCausalLM":
        """Read a folder or Hub id in the released layout: FP4, FP8, BF16 or F32 tensors as found on disk.

        Peak memory is the model and one tensor. `quantized` keeps what is FP4 or FP8 on disk in those bytes, frozen and
        dequantized only while it is used; everything else gets `dtype`. `streamed`, with `quantized`, leaves those
        bytes in the folder's files, from which they come block by block; they are not searched for NaN.

        Raises:
            ValueError: the folder, its config.json or a tensor is missing, unexpected, of the wrong shape or type, or
                damaged; the sentence names it.
        """
        folder = locate(source)
        model = cls(DeepseekV4Config.from_pretrained(folder), device="meta", dtype=dtype, numerics=numerics)
        if quantized:
            quantize_modules(model, FolderSource(folder).kind)
        if quantized and streamed:
            stream_from_disk(model, folder, [*model.blocks()])
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
        if self.is_adapted():
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
        cache: KVCache | None = None,
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
            cache: what came before in each row (`new_cache`); the tokens are added to it. `documents` are then 1, and
                0 for padding after a row's tokens. No gradient flows.

        Raises:
            ValueError: shapes do not fit, an id is outside the vocabulary, the model has no MTP block, or the cache no
                room.
        """
        self._check(input_ids, labels, documents, mtp)
        input_ids = input_ids.long()
        if cache is not None:
            if labels is not None or mtp or ledger is not None:
                raise ValueError("a call with a cache gives logits only: leave labels, mtp and ledger out")
            with torch.no_grad():
                streams = self.advance(input_ids, cache, None if documents is None else _counts(documents))
                return CausalLMOutput(logits=self.logits(self.hidden(streams)) if with_logits else None)
        layout = self.sequence(torch.ones_like(input_ids) if documents is None else documents)
        tokens = layout.mine(input_ids)
        streams = self.run(self.enter(tokens), tokens, layout, ledger)
        hidden = self.hidden(streams)
        ahead = None
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

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        speculative: bool = False,
    ) -> Tensor:
        """`input_ids` `[B, T]` and what the model goes on with, `[B, T + N]`; see `generate.ids.continued`.

        Raises:
            ValueError: an id is outside the vocabulary, or a number outside its range.
        """
        # the one import from an upper floor: who has a model wants to hear it
        from seektune.generate.ids import continued
        from seektune.generate.sampling_params import Sampling

        self._check(input_ids, None, None, mtp=speculative)
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        return continued(self, input_ids, max_new_tokens, sampling, seed, speculative)

    def new_cache(self, batch_size: int, max_length: int, rollback: int = ROLLBACK, grows: bool = False) -> KVCache:
        """An empty cache for `batch_size` rows of at most `max_length` tokens, of which `rollback` can be taken back.

        One that `grows` takes the memory of its longest row, in powers of two, and not `max_length`'s from the start.

        Raises:
            ValueError: a size is not positive.
        """
        weight = self.embed.weight
        return KVCache.of(
            self.config, range(len(self.layers)), batch_size, max_length, weight.dtype, weight.device, rollback, grows
        )

    def new_draft_cache(self, batch_size: int, max_length: int, grows: bool = False) -> KVCache:
        """An empty cache for the MTP block (`foresee`)."""
        weight = self.embed.weight
        layer = self.config.num_hidden_layers
        return KVCache.of(
            self.config, range(layer, layer + 1), batch_size, max_length, weight.dtype, weight.device, grows=grows
        )

    @torch.no_grad()
    def advance(self, tokens_BT: Tensor, cache: KVCache, counts: Sequence[int] | None = None) -> Tensor:
        """Streams `[B, T, S, D]` of tokens that go on where a cache stands; they are added to it.

        Args:
            tokens_BT: ids, int64.
            cache: of as many rows.
            counts: how many of each row's tokens are text, the others being padding; None = all.

        Raises:
            ValueError: the cache has other rows, or no room.
        """
        if tokens_BT.shape[0] != cache.rows:
            raise ValueError(f"the cache has {cache.rows} rows, input_ids {tokens_BT.shape[0]}")
        step = cache.step(tokens_BT.shape[1], counts)
        streams = self.run(self.enter(tokens_BT), tokens_BT, step.layout(tokens_BT.device), None)
        cache.advance(step)
        return streams

    @torch.no_grad()
    def foresee(
        self, streams_BTSD: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int] | None = None
    ) -> Tensor:
        """What the head reads of the MTP block, `[B, T, D]`: each row goes on where the MTP block's cache stands.

        Args:
            streams_BTSD: what `advance` gave for the next tokens that the MTP block has not read.
            next_BT: the token after each of them.
            cache: of `new_draft_cache`; they are added to it.
            counts: as of `advance`.
        """
        step = cache.step(next_BT.shape[1], counts)
        hidden = self.look_ahead(streams_BTSD, self.embed(next_BT), next_BT, step.layout(next_BT.device), None)
        cache.advance(step)
        return hidden

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
        low = int(input_ids.min())
        high = int(input_ids.max())
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


def _counts(documents_BT: Tensor) -> list[int]:
    """Tokens of each row, which padding may follow.

    Raises:
        ValueError: there is padding elsewhere, or a second document.
    """
    real_BT = documents_BT != 0
    counts_B = real_BT.sum(dim=1)
    expected_BT = torch.arange(documents_BT.shape[1], device=documents_BT.device) < counts_B[:, None]
    if not torch.equal(documents_BT.bool(), expected_BT) or int(documents_BT.max()) > 1 or int(documents_BT.min()) < 0:
        raise ValueError(
            "with a cache, documents are 1 for a row's tokens and then 0 for padding: a row holds one text"
        )
    return [int(count) for count in counts_B]
