"""The keys of a config.json that transformers wrote, translated to those of the release.

transformers describes each layer by name (`layer_types`, `mlp_layer_types`) and each kind of RoPE in an object
(`rope_parameters`), and does not describe the blocks after the backbone: the MTP block or the DSpark stages.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

KEYS = ("compress_rates", "layer_types", "mlp_layer_types", "rope_parameters")
"""Keys that transformers writes instead of those of the release."""
DSPARK_KEYS = "dspark_"
DSPARK_ENCODING: Literal["preview", "0731"] = "0731"
"""The chat encoding that came with DSpark; `chat_encoding` keeps it where the drafter's keys are dropped."""
DRAFTER_KEYS = ("num_nextn_predict_layers", DSPARK_KEYS)
"""How the keys begin that describe the blocks after the backbone, beside the end of `compress_ratios`."""
_DROPPED = {
    *KEYS,
    "partial_rotary_factor",
    "mlp_bias",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
}
"""Keys that the release does not have, and that say nothing about a model that we can read."""


class _RopeKeys(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    rope_type: Literal["default", "yarn"] = "default"
    rope_theta: float
    partial_rotary_factor: float | None = Field(None, gt=0, le=1)
    attention_factor: float | None = Field(None, ge=1, le=1)

    @property
    def yarn(self) -> dict[str, Any] | None:
        """`rope_scaling` of the release."""
        if self.rope_type == "default":
            return None
        own = {*_RopeKeys.model_fields, "type"}
        return {"type": "yarn", **{key: value for key, value in self if key not in own}}


class _PlainRopeKeys(_RopeKeys):
    rope_type: Literal["default"] = "default"


class _RopeParameters(BaseModel):
    main: _PlainRopeKeys
    compress: _RopeKeys


class _TheirKeys(BaseModel):
    model_config = ConfigDict(frozen=True)

    num_hidden_layers: int
    head_dim: int | None = None
    layer_types: list[str] | None = None
    compress_rates: dict[str, int] = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
    mlp_layer_types: list[Literal["hash_moe", "moe"]] | None = None
    rope_parameters: _RopeParameters | None = None
    partial_rotary_factor: float | None = Field(None, gt=0, le=1)

    def translated(self) -> list[tuple[str, str, Any]]:
        """Keys of transformers, the released keys that they stand for, and their values."""
        found: list[tuple[str, str, Any]] = []
        if self.layer_types is not None:
            found.append(("layer_types", "compress_ratios", [self._ratio(each) for each in self.layer_types]))
        if self.mlp_layer_types is not None:
            found.append(("mlp_layer_types", "num_hash_layers", self._hash_layers(self.mlp_layer_types)))
        if (rope := self.rope_parameters) is not None:
            found.append(("rope_parameters.main", "rope_theta", rope.main.rope_theta))
            found.append(("rope_parameters.compress", "compress_rope_theta", rope.compress.rope_theta))
            found.append(("rope_parameters.compress", "rope_scaling", rope.compress.yarn))
            found += self._rotary("rope_parameters.main", rope.main.partial_rotary_factor)
            found += self._rotary("rope_parameters.compress", rope.compress.partial_rotary_factor)
        return found + self._rotary("partial_rotary_factor", self.partial_rotary_factor)

    def _ratio(self, layer_type: str) -> int:
        rates = {"sliding_attention": 0, **self.compress_rates}
        if layer_type not in rates:
            raise ValueError(f"layer_types holds {layer_type[:80]!r}, which no layer of DeepSeek-V4 is")
        return rates[layer_type]

    def _hash_layers(self, types: list[Literal["hash_moe", "moe"]]) -> int:
        count = types.count("hash_moe")
        if "moe" in types[:count] or len(types) != self.num_hidden_layers:
            raise ValueError("mlp_layer_types must name hash_moe for the first layers and moe for all others")
        return count

    def _rotary(self, key: str, share: float | None) -> list[tuple[str, str, Any]]:
        if share is None or self.head_dim is None:
            return []
        return [(key, "qk_rope_head_dim", round(min(self.head_dim, 2**20) * share))]


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a config has keys that transformers writes instead of those of the release."""
    return any(key in config for key in KEYS)


def released_keys(config: Mapping[str, Any], drafter_blocks: int) -> dict[str, Any]:
    """The same config in the keys of the release.

    Args:
        config: as transformers wrote it.
        drafter_blocks: how many blocks there are after the backbone, which transformers' keys do not say.

    Raises:
        ValueError: a key has an impossible value, or contradicts another one; the message names both.
    """
    try:
        theirs = _TheirKeys.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    translated = theirs.translated()
    ours = {key: value for key, value in config.items() if key not in _DROPPED}
    for key, released, value in translated:
        if released in ours and not _agree(ours[released], value, released):
            raise ValueError(f"{key} and {released} contradict each other; keep the right one of the two")
        ours.setdefault(released, value)
    return ours if "compress_ratios" in config else _with_blocks(ours, theirs.num_hidden_layers, drafter_blocks)


def _agree(ours: object, theirs: object, key: str) -> bool:
    """Whether a value says the same: of `compress_ratios` about the layers, of `rope_scaling` however it is named."""
    if key == "compress_ratios" and isinstance(ours, list) and isinstance(theirs, list):
        return ours[: len(theirs)] == theirs
    if key == "rope_scaling" and isinstance(ours, dict) and isinstance(theirs, dict):
        return {**ours, "type": "", "rope_type": ""} == {**theirs, "type": "", "rope_type": ""}
    return ours == theirs


def _with_blocks(config: dict[str, Any], layers: int, blocks: int) -> dict[str, Any]:
    """The config with an entry of `compress_ratios` for each block after the backbone; without keys of absent ones."""
    ratios = config.get("compress_ratios", [])
    if len(ratios) != layers:
        raise ValueError(f"layer_types has {len(ratios)} entries, num_hidden_layers is {layers}")
    kept = {key: value for key, value in config.items() if blocks or not key.startswith(DRAFTER_KEYS)}
    none: dict[str, Any] = {} if blocks else {"num_nextn_predict_layers": 0}
    if any(key.startswith(DSPARK_KEYS) and key not in kept for key in config):
        # what is left of a release after the preview still has its chat encoding
        none["chat_encoding"] = DSPARK_ENCODING
    return {**kept, **none, "compress_ratios": [*ratios, *[0] * blocks]}
