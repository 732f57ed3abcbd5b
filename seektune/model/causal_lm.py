"""DeepSeek-V4 as a causal language model on one device: logits, losses, generation, loading and saving.

Shapes: B rows, T tokens, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seektune.checkpoint import load_weights, locate, save_weights, weight_shapes
from seektune.checkpoint.load import check_fit
from seektune.checkpoint.names import Shape
from seektune.checkpoint.source import FolderSource
from seektune.model.config import DeepseekV4Config
from seektune.model.gate import RoutingLedger, check_tables
from seektune.model.head import Taught, TokenScores
from seektune.model.initialize import initialize
from seektune.model.inputs import check_inputs, count_tokens
from seektune.model.kv_cache.cache import KVCache
from seektune.model.kv_cache.decode import CachedTransformer
from seektune.model.offload import stream_from_disk
from seektune.model.quantized import quantize_modules
from seektune.model.transformer import TokenRows, TransformerPart
from seektune.sequence import Batch


@dataclass(frozen=True)
class CausalLMOutput:
    """The requested outputs of a forward pass; the others are None."""

    logits: Tensor | None = None
    """fp32 `[B, T, V]`; position t predicts token t + 1."""
    loss: Tensor | None = None
    """Cross-entropy of the taught tokens, divided by their number or by `num_items_in_batch`."""
    mtp_logits: Tensor | None = None
    """fp32 `[B, T-1, V]`; position t has seen token t + 1 and predicts token t + 2."""
    mtp_loss: Tensor | None = None
    """The MTP block's cross-entropy, over the same divisor as `loss`."""


class DeepseekV4ForCausalLM(CachedTransformer):
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
        drafter: bool = False,
    ):
        layers = range(config.num_hidden_layers)
        super().__init__(config, layers, dtype, numerics, first=True, last=True, drafter=drafter)
        self.carried: Path | None = None
        """The checkpoint folder with the DSpark stages, if the model was loaded without them; exports copy them."""
        place = torch.device(device) if device is not None else torch.get_default_device()
        if place.type != "meta":
            self.to_empty(device=place)
            initialize(self.state_dict(), config)

    @classmethod
    def of(cls, part: TransformerPart) -> "DeepseekV4ForCausalLM":
        """A part that is a whole model, as one that can decode; the modules are the same objects."""
        model = cls(part.config, "meta", part.dtype, part.numerics)
        for name, child in part.named_children():
            setattr(model, name, child)
        return model

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: torch.dtype = torch.float32,
        numerics: str = "plain",
        device: torch.device | str = "cpu",
        quantized: bool = False,
        streamed: bool = False,
        drafter: bool = False,
        backbone: bool = False,
    ) -> "DeepseekV4ForCausalLM":
        """Read a folder or Hub id in the released layout: FP4, FP8, BF16 or F32 tensors as found on disk.

        Peak memory is the model and one tensor. `quantized` keeps what is FP4 or FP8 on disk in those bytes, frozen and
        dequantized only while it is used; everything else gets `dtype`. `streamed`, with `quantized`, leaves those
        bytes in the folder's files, from which they come block by block; they are not searched for NaN. `drafter` loads
        the DSpark stages too, if the checkpoint has them; `backbone` leaves them and the MTP block out.

        Raises:
            ValueError: the folder, its config.json or a tensor is missing, unexpected, of the wrong shape or type, or
                damaged; the message names it.
        """
        folder = locate(source)
        config = DeepseekV4Config.from_pretrained(folder)
        model = cls(config.without_drafter() if backbone else config, "meta", dtype, numerics, drafter)
        files = FolderSource(folder)
        complete = checkpoint_shapes(config)
        check_fit(files, complete, folder)
        if quantized:
            quantize_modules(model, files.kind)
        if quantized and streamed:
            stream_from_disk(model, folder, [*model.blocks()], complete=complete, device=device)
        else:
            model.to_empty(device=device)
            load_weights(model.state_dict(), folder, complete)
        check_tables(model.gates(), folder)
        if config.dspark_stages and not drafter:
            model.carried = folder
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
        before = None if original is None else locate(original)
        config = exported_config(self.config, drafter=self.carried is not None or len(self.mtp) > 0)
        save_weights(self.state_dict(), config, Path(folder), format, before, carried=self.carried)

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
        """Logits, and losses if `labels` are given; all arguments int64 `[B, T]`.

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
        check_inputs(self.config, input_ids, labels, documents, mtp)
        input_ids = input_ids.long()
        if cache is not None:
            if labels is not None or mtp or ledger is not None:
                raise ValueError("a call with a cache gives logits only: leave labels, mtp and ledger out")
            return self._continue(input_ids, documents, cache, with_logits)
        rows = TokenRows(input_ids, self.sequence(torch.ones_like(input_ids) if documents is None else documents))
        hidden = self.read_out(self.backbone(rows, mtp, ledger), rows, ledger)
        losses = None
        if labels is not None:
            taught = Taught.of(labels.long(), rows.layout, num_items_in_batch)
            losses = self.losses(hidden, rows.layout, taught)
        ahead = hidden.mtp_BTD
        return CausalLMOutput(
            logits=self.logits(hidden.main_BTD) if with_logits else None,
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
        """`input_ids` `[B, T]` and the tokens sampled after them, `[B, T + N]`; arguments as in `generate_ids`.

        Raises:
            ValueError: an id is outside the vocabulary, a number is outside its range, or there is no drafter.
        """
        # the one import from an upper floor: callers of a model look for this method on it
        from seektune.generate.ids import generate_ids

        check_inputs(self.config, input_ids)
        sampling = (temperature, top_k, top_p, min_p, repetition_penalty)
        return generate_ids(self, input_ids, max_new_tokens, *sampling, seed, speculative)

    @torch.no_grad()
    def score(self, batch: Batch) -> TokenScores:
        """Scores of the taught tokens of rows, `[B, T]`, without materializing the logits."""
        batch = batch.to(self.device)
        rows = TokenRows(batch.tokens, self.sequence(batch.documents))
        return self.scores_of(self.hidden(self.backbone(rows).streams_BTSD), rows.layout, batch.labels)

    @torch.no_grad()
    def _continue(
        self, input_ids: Tensor, documents: Tensor | None, cache: KVCache, with_logits: bool
    ) -> CausalLMOutput:
        """The forward pass of tokens that follow those in a cache."""
        streams = self.advance(input_ids, cache, None if documents is None else count_tokens(documents))
        return CausalLMOutput(logits=self.logits(self.hidden(streams)) if with_logits else None)


def checkpoint_shapes(config: DeepseekV4Config) -> dict[str, Shape]:
    """Names and shapes of all tensors of a checkpoint with this config, DSpark stages included."""
    return weight_shapes(DeepseekV4ForCausalLM(config, "meta", drafter=True).state_dict())


def exported_config(config: DeepseekV4Config, drafter: bool) -> dict[str, Any]:
    """The keys of an export's config.json; without its tensors, no `drafter` is in it."""
    kept = config if drafter or not config.dspark_stages else config.without_drafter()
    return {"model_type": config.model_type, **kept.to_dict()}
