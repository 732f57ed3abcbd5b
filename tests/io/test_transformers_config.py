"""The keys of transformers, translated to those of the release, and what is refused of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from seektune.io.config_json import lost_drafter, read_config
from seektune.io.transformers_config import is_transformers, released_keys
from seektune.model.config import DeepseekV4Config

THEIRS: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "head_dim": 16,
    "layer_types": [
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
        "compressed_sparse_attention",
    ],
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    "partial_rotary_factor": 0.5,
    "rope_parameters": {
        "main": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "compress": {
            "rope_type": "yarn",
            "type": "yarn",
            "rope_theta": 160000.0,
            "partial_rotary_factor": 0.5,
            "attention_factor": 1.0,
            "factor": 16,
            "original_max_position_embeddings": 65536,
        },
    },
    "router_aux_loss_coef": 0.001,
    "use_cache": True,
}
OURS = {
    "model_type": "deepseek_v4",
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 0,
    "head_dim": 16,
    "compress_ratios": [0, 4, 128, 4],
    "num_hash_layers": 1,
    "qk_rope_head_dim": 8,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536},
    "use_cache": True,
}


def test_every_key_is_translated_and_those_without_meaning_are_dropped() -> None:
    assert released_keys(THEIRS, 0) == OURS


def test_a_config_of_the_release_is_not_touched() -> None:
    for preset in ("flash", "pro", "tiny"):
        assert not is_transformers(DeepseekV4Config.preset(preset).to_dict())


def test_keys_of_both_that_agree_are_one() -> None:
    released = {"compress_ratios": [0, 4, 128, 4, 0], "num_hash_layers": 1, "rope_theta": 10000}
    scaling = {"rope_scaling": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 65536}}
    found = released_keys(THEIRS | released | scaling, 0)
    assert found == OURS | released | scaling | {"num_nextn_predict_layers": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compress_ratios": [0, 4, 4, 4, 0]}, "layer_types and compress_ratios contradict"),
        ({"num_hash_layers": 2}, "mlp_layer_types and num_hash_layers contradict"),
        ({"rope_theta": 5e5}, "rope_parameters.main and rope_theta contradict"),
        ({"compress_rope_theta": 5e5}, "rope_parameters.compress and compress_rope_theta contradict"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_parameters.compress and rope_scaling contradict"),
        ({"qk_rope_head_dim": 4}, "rope_parameters.main and qk_rope_head_dim contradict"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor and qk_rope_head_dim contradict"),
        ({"partial_rotary_factor": 1e308}, "partial_rotary_factor: "),
        ({"layer_types": ["full_attention"] * 4}, "'full_attention', which no layer of DeepSeek-V4 is"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types has 3 entries, num_hidden_layers is 4"),
        ({"mlp_layer_types": ["moe", "hash_moe", "moe", "moe"]}, "must name hash_moe for the first layers"),
        ({"mlp_layer_types": ["dense"] * 4}, "mlp_layer_types.0: "),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.main: Field required"),
        ({"rope_parameters": []}, "rope_parameters: "),
        ({"compress_rates": [4, 128]}, "compress_rates: "),
        ({"num_hidden_layers": None}, "num_hidden_layers: "),
    ],
)
def test_contradictions_and_impossible_values_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        released_keys(THEIRS | changes, 0)


@pytest.mark.parametrize(("key", "value"), [("attention_factor", 1.2), ("rope_type", "linear")])
def test_another_rope_is_refused(key: str, value: object) -> None:
    rope = THEIRS["rope_parameters"] | {"compress": THEIRS["rope_parameters"]["compress"] | {key: value}}
    with pytest.raises(ValueError, match=rf"rope_parameters\.compress\.{key}"):
        released_keys(THEIRS | {"rope_parameters": rope}, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def make(*names: str, **changes: Any) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(THEIRS | changes))
        if names:
            save_file({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
        return tmp_path

    return make


def test_the_blocks_after_the_backbone_are_counted_on_disk(folder: Callable[..., Path]) -> None:
    """As Megatron-Bridge has it: the release's names beside the config of transformers."""
    made = folder("head.weight", "mtp.0.norm.weight", "mtp.1.norm.weight", "mtp.2.norm.weight", dspark_block_size=5)
    found = read_config(made)
    assert found["compress_ratios"] == [0, 4, 128, 4, 0, 0, 0]
    assert (found["num_nextn_predict_layers"], found["dspark_block_size"]) == (1, 5)
    assert not lost_drafter(made)


def test_keys_of_absent_blocks_are_left_out(folder: Callable[..., Path]) -> None:
    made = folder("lm_head.weight", dspark_block_size=5)
    assert read_config(made) == OURS | {"chat_encoding": "0731"}
    assert lost_drafter(made)
    assert not lost_drafter(folder("lm_head.weight", num_nextn_predict_layers=0))


def test_a_config_without_weights_has_the_blocks_that_it_names(folder: Callable[..., Path]) -> None:
    made = folder()
    for place in (made, made / "config.json"):
        assert read_config(place)["compress_ratios"] == [0, 4, 128, 4, 0]
    assert len(read_config(folder(num_nextn_predict_layers=10**15))["compress_ratios"]) < 200


def test_a_message_names_the_file(folder: Callable[..., Path]) -> None:
    made = folder(num_hash_layers=3)
    with pytest.raises(ValueError, match=r"config\.json has the keys of transformers, but mlp_layer_types and "):
        read_config(made)
