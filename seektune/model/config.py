"""The released config.json as a typed object with the same keys; impossible combinations raise."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from seektune.io.config_json import config_file, read_config, write_config
from seektune.io.transformers_config import DSPARK_ENCODING
from seektune.model.config_sizes import check_sizes
from seektune.model.dspark_config import DSparkKeys
from seektune.model.unsupported import unsupported

SLIDING = 0
CSA = 4
HCA = 128
"""The three values of `compress_ratios`: sliding window only, compressed sparse, heavily compressed attention."""
ATTENTION_NAMES = {SLIDING: "SWA", CSA: "CSA", HCA: "HCA"}
"""Names of the kinds of attention, by compress ratio."""


RopeBase = Annotated[float, Field(gt=1, allow_inf_nan=False)]
"""The base of RoPE's frequencies, whose logarithm YaRN divides by."""


class RopeScaling(BaseModel):
    """YaRN parameters of the layers with compression (`rope_scaling` of config.json)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["yarn"] = "yarn"
    rope_type: Literal["yarn"] = "yarn"
    """The newer name of `type`."""
    factor: PositiveFloat
    original_max_position_embeddings: PositiveInt
    beta_fast: PositiveFloat = 32
    beta_slow: PositiveFloat = 1


class DeepseekV4Config(DSparkKeys):
    """Keys of the released config.json. Unknown keys are kept and written back; a file round-trips unchanged.

    The blocks after the backbone's are counted by `compress_ratios`: a checkpoint with DSpark stages keeps
    `num_nextn_predict_layers` at 1, whatever their number.

    Raises:
        ValueError: a key is missing, has a wrong type, or contradicts another; the message names the key.
    """

    model_config = ConfigDict(
        extra="allow", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants", protected_namespaces=()
    )

    model_type: Literal["deepseek_v4"] = "deepseek_v4"
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_hash_layers: NonNegativeInt
    num_nextn_predict_layers: NonNegativeInt = 0
    num_attention_heads: PositiveInt
    num_key_value_heads: Literal[1] = 1
    head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    q_lora_rank: PositiveInt
    o_lora_rank: PositiveInt
    o_groups: PositiveInt
    sliding_window: PositiveInt
    compress_ratios: tuple[int, ...]
    rope_theta: RopeBase
    compress_rope_theta: RopeBase
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: PositiveInt
    index_n_heads: PositiveInt
    index_head_dim: PositiveInt
    index_topk: PositiveInt
    n_routed_experts: PositiveInt
    n_shared_experts: Literal[1] = 1
    num_experts_per_tok: PositiveInt
    moe_intermediate_size: PositiveInt
    scoring_func: Literal["sqrtsoftplus"] = "sqrtsoftplus"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    norm_topk_prob: Literal[True] = True
    routed_scaling_factor: PositiveFloat
    swiglu_limit: PositiveFloat
    hidden_act: Literal["silu"] = "silu"
    hc_mult: PositiveInt
    hc_sinkhorn_iters: PositiveInt
    hc_eps: PositiveFloat
    rms_norm_eps: PositiveFloat
    initializer_range: NonNegativeFloat = 0.02
    attention_bias: Literal[False] = False
    attention_dropout: float = Field(0.0, ge=0.0, le=0.0)
    tie_word_embeddings: Literal[False] = False
    chat_encoding: Literal["preview", "0731"] | None = None
    """Of the prompts that it was trained with, where the architecture does not say it; a key of ours."""
    bos_token_id: NonNegativeInt = 0
    eos_token_id: NonNegativeInt = 1

    def model_post_init(self, _context: Any) -> None:
        """Raise on sizes and combinations that no model can have."""
        known = DeepseekV4Config.model_fields
        sizes = {key: value for key, value in self if key in known and isinstance(value, int)}
        check_sizes(sizes, max(self.num_hidden_layers, len(self.compress_ratios)))
        for is_wrong, message in self._problems():
            if is_wrong:
                raise ValueError(message)

    def check_length(self, tokens: int, what: str) -> None:
        """Check that a sequence is within the context of the model.

        Raises:
            ValueError: it is longer; the message begins with `what`.
        """
        if tokens > self.max_position_embeddings:
            raise ValueError(f"{what} ({tokens}) exceeds the model's {self.max_position_embeddings} positions")

    @classmethod
    def preset(cls, name: str) -> Self:
        """The architecture of a variant (`seektune.model.variants`); `tiny` has every mechanism at CPU size."""
        files = {
            file.name.removesuffix(".json"): file
            for file in resources.files("seektune.model").joinpath("presets").iterdir()
        }
        if name not in files:
            raise ValueError(f"unknown preset {name!r:.80}; the presets are {', '.join(sorted(files))}")
        return cls.from_dict(json.loads(files[name].read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str = "config") -> Self:
        """Build from the parsed config.json; error messages start with `origin`, a file name."""
        _check_model_type(values, origin)
        try:
            return cls.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            raise ValueError(f"{origin}: {_message(error)}") from None
        except RecursionError:
            raise ValueError(f"{origin} is nested too deeply") from None

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read config.json from a checkpoint folder, or a config file directly."""
        return cls.from_dict(read_config(Path(path)), str(config_file(Path(path))))

    def to_dict(self) -> dict[str, Any]:
        """The keys that were set, including unknown ones, as in config.json."""
        return self.model_dump(mode="json", exclude_unset=True)

    def save(self, folder: str | Path) -> None:
        """Write config.json into an existing folder."""
        write_config(Path(folder), {"model_type": self.model_type, **self.to_dict()})

    def replace(self, **changes: Any) -> Self:
        """A validated copy with changed values; None removes an optional key."""
        values = {**self.to_dict(), **changes}
        return self.from_dict({key: value for key, value in values.items() if value is not None})

    def ratio(self, layer: int) -> int:
        """Compression ratio of a block; the MTP block, or the first DSpark stage, has index `num_hidden_layers`."""
        return self.compress_ratios[layer]

    @property
    def mtp_layers(self) -> int:
        """Number of MTP blocks, 0 or 1: the blocks after the backbone's, unless they are DSpark stages."""
        return 0 if self.has_dspark else len(self.compress_ratios) - self.num_hidden_layers

    @property
    def dspark_stages(self) -> int:
        """Number of DSpark stages: the blocks after the backbone's if the config has the keys of DSpark."""
        return len(self.compress_ratios) - self.num_hidden_layers if self.has_dspark else 0

    @property
    def why_no_mtp(self) -> str:
        """Why `mtp_layers` is 0, for messages."""
        return "its mtp.* tensors are DSpark stages" if self.has_dspark else "num_nextn_predict_layers is 0"

    def without_drafter(self) -> Self:
        """The config of the backbone alone: no MTP block, no DSpark stage. The chat encoding of the latter is kept."""
        nothing: dict[str, Any] = dict.fromkeys(DSparkKeys.model_fields)
        if self.has_dspark:
            nothing["chat_encoding"] = self.chat_encoding or DSPARK_ENCODING
        backbone = self.compress_ratios[: self.num_hidden_layers]
        return self.replace(**nothing, num_nextn_predict_layers=0, compress_ratios=backbone)

    def _problems(self) -> list[tuple[bool, str]]:
        ratios = self.compress_ratios
        return [
            *(
                self.dspark_problems(self.num_hidden_layers, self.vocab_size)
                if self.has_dspark
                else self._mtp_problems()
            ),
            (
                self.has_dspark and len(ratios) <= self.num_hidden_layers,
                "compress_ratios has no entry for a DSpark stage after those of the layers",
            ),
            (
                bool(set(ratios) - {SLIDING, CSA, HCA}),
                f"compress_ratios may hold {SLIDING}, {CSA} and {HCA}, not {_first_other(ratios)}",
            ),
            (
                any(ratios[self.num_hidden_layers :]),
                "compress_ratios must be 0 for the MTP block and for DSpark stages",
            ),
            (
                self.num_hash_layers > self.num_hidden_layers,
                f"num_hash_layers is {self.num_hash_layers}, more than num_hidden_layers ({self.num_hidden_layers})",
            ),
            (
                self.num_attention_heads % self.o_groups != 0,
                f"o_groups ({self.o_groups}) must divide num_attention_heads ({self.num_attention_heads})",
            ),
            (self.qk_rope_head_dim % 2 != 0, "qk_rope_head_dim must be even: RoPE rotates pairs"),
            (
                self.qk_rope_head_dim > self.head_dim,
                f"qk_rope_head_dim ({self.qk_rope_head_dim}) must not exceed head_dim ({self.head_dim})",
            ),
            (
                CSA in ratios and self.qk_rope_head_dim > self.index_head_dim,
                f"qk_rope_head_dim ({self.qk_rope_head_dim}) must not exceed index_head_dim ({self.index_head_dim})",
            ),
            (
                self.num_experts_per_tok > self.n_routed_experts,
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds n_routed_experts ({self.n_routed_experts})",
            ),
            (
                max(self.bos_token_id, self.eos_token_id) >= self.vocab_size,
                f"bos_token_id and eos_token_id must be below vocab_size ({self.vocab_size})",
            ),
        ]

    def _mtp_problems(self) -> list[tuple[bool, str]]:
        entries = len(self.compress_ratios)
        blocks = self.num_hidden_layers + self.num_nextn_predict_layers
        return [
            (
                entries != blocks,
                f"compress_ratios has {entries} entries, num_hidden_layers + num_nextn_predict_layers is {blocks}",
            ),
            (self.num_nextn_predict_layers > 1, "num_nextn_predict_layers must be 0 or 1: V4 has one MTP block"),
        ]


def _first_other(ratios: Sequence[int]) -> str:
    """The first ratio that no attention has, of any number of digits."""
    return next((str(ratio)[:20] for ratio in ratios if ratio not in ATTENTION_NAMES), "")


def _check_model_type(values: dict[str, Any], origin: str) -> None:
    if (why := unsupported(values)) is not None:
        raise ValueError(f"{origin}: {why}")
    found = values.get("model_type", "deepseek_v4")
    if found != "deepseek_v4":
        raise ValueError(f"{origin}: model_type is {str(found)[:80]!r}, but SeekTune supports only deepseek_v4")


def _message(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {message}" if key else message
