"""Reading and writing config.json: every key of the release, and a one-line error for every impossible config."""

import json
from pathlib import Path

import pytest

from seektune.model.config import DeepseekV4Config
from seektune.model.variants import PRESETS, encoding_of

FLASH = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "hidden_size": 4096,
    "num_hidden_layers": 43,
    "num_hash_layers": 3,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_lora_rank": 1024,
    "o_groups": 8,
    "sliding_window": 128,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "compress_rope_theta": 160000,
    "rope_theta": 10000,
    "max_position_embeddings": 1048576,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 2048,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "hidden_act": "silu",
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "num_nextn_predict_layers": 1,
    "expert_dtype": "fp4",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
}

PRO = {
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "index_topk": 1024,
    "n_routed_experts": 384,
    "moe_intermediate_size": 3072,
    "routed_scaling_factor": 2.5,
    "compress_ratios": [128, 128, *[4, 128] * 29, 4, 0],
}


def test_flash_preset_has_the_48_published_keys():
    assert len(FLASH) == 48
    assert DeepseekV4Config.preset("flash").to_dict() == FLASH


def test_pro_preset_has_the_published_keys():
    assert DeepseekV4Config.preset("pro").to_dict() == FLASH | PRO


def test_flash_base_has_flashs_architecture():
    base = DeepseekV4Config.preset("flash-base").to_dict()
    storage = {"quantization_config", "expert_dtype", "torch_dtype", "transformers_version"}
    assert {key: base[key] for key in FLASH if key not in storage} == {
        key: value for key, value in FLASH.items() if key not in storage
    }


@pytest.mark.parametrize(
    ("preset", "file"),
    [
        ("flash", "v4flash.config.json"),
        ("flash-0731", "v4flash0731.config.json"),
        ("pro", "v4pro.config.json"),
        ("pro-0813", "v4pro0813.config.json"),
    ],
)
def test_released_file_round_trips_and_equals_preset(released: Path, tmp_path: Path, preset: str, file: str):
    original = json.loads((released / file).read_text())
    config = DeepseekV4Config.from_pretrained(released / file)
    assert config.to_dict() == original == DeepseekV4Config.preset(preset).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert DeepseekV4Config.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_a_file(tmp_path: Path, name: str):
    config = DeepseekV4Config.preset(name)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    again = DeepseekV4Config.from_pretrained(tmp_path)
    assert again == config
    assert again.to_dict() == config.to_dict()


def test_tiny_has_every_mechanism():
    tiny = DeepseekV4Config.preset("tiny")
    assert set(tiny.compress_ratios) == {0, 4, 128}
    assert 0 < tiny.num_hash_layers < tiny.num_hidden_layers
    assert tiny.mtp_layers == 1
    assert tiny.dspark_stages == 0
    assert tiny.hc_mult > 1
    assert tiny.o_groups > 1
    assert tiny.num_experts_per_tok < tiny.n_routed_experts


def test_stages_are_counted_by_compress_ratios():
    """`num_nextn_predict_layers` is 1 in every release, and 3 in none that is supported."""
    for nextn in (0, 1, 3):
        config = DeepseekV4Config.preset("flash-0731").replace(num_nextn_predict_layers=nextn)
        assert (config.mtp_layers, config.dspark_stages) == (0, 3)
    alone = DeepseekV4Config.preset("flash-0731").without_drafter()
    assert (alone.mtp_layers, alone.dspark_stages, len(alone.compress_ratios)) == (0, 0, 43)
    assert not any(key.startswith("dspark_") for key in alone.to_dict())
    assert DeepseekV4Config.preset("flash").without_drafter() == alone.replace(chat_encoding=None)
    assert encoding_of(alone) == "0731"


DSPARK = {
    "dspark_block_size": 5,
    "dspark_noise_token_id": 128799,
    "dspark_target_layer_ids": [40, 41, 42],
    "dspark_markov_rank": 256,
    "compress_ratios": [*FLASH["compress_ratios"], 0, 0],
}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"dspark_markov_rank": None}, "dspark_markov_rank is missing"),
        ({"dspark_target_layer_ids": []}, "dspark_target_layer_ids is empty"),
        ({"dspark_target_layer_ids": [40, 43]}, "dspark_target_layer_ids must be below num_hidden_layers"),
        ({"dspark_target_layer_ids": [-1]}, "dspark_target_layer_ids"),
        ({"dspark_noise_token_id": 129280}, "dspark_noise_token_id must be below vocab_size"),
        ({"dspark_block_size": 0}, "dspark_block_size"),
        ({"dspark_block_size": 17}, "dspark_block_size is above 16"),
        ({"compress_ratios": FLASH["compress_ratios"][:43]}, "no entry for a DSpark stage"),
        ({"compress_ratios": [*FLASH["compress_ratios"], 4, 0]}, "must be 0 for the MTP block and for DSpark stages"),
        ({"compress_ratios": FLASH["compress_ratios"][:42]}, "compress_ratios"),
    ],
)
def test_impossible_dspark_configs(changes, key):
    values = FLASH | DSPARK | changes
    assert DeepseekV4Config.from_dict(FLASH | DSPARK).dspark_stages == 3
    with pytest.raises(ValueError, match=key):
        DeepseekV4Config.from_dict({key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"model_type": "deepseek_v41"}, "V4.1"), ({"vision_n_layers": 32}, "Vision-Exp")],
)
def test_related_architectures_are_named(changes, name):
    with pytest.raises(ValueError, match=name):
        DeepseekV4Config.from_dict(FLASH | changes)


def test_unknown_keys_are_kept_and_written_back():
    extra = {"new_key": 5, "nested": {"a": [1, None, "x"], "b": 1.5}, "auto_map": None}
    config = DeepseekV4Config.from_dict(FLASH | extra)
    assert config.to_dict() == FLASH | extra
    scaling = FLASH["rope_scaling"] | {"note": "kept"}
    assert DeepseekV4Config.from_dict(FLASH | {"rope_scaling": scaling}).to_dict()["rope_scaling"] == scaling


def test_ratio_of_each_layer():
    config = DeepseekV4Config.preset("flash")
    assert [config.ratio(layer) for layer in (0, 1, 2, 3, 41, 42, 43)] == [0, 0, 4, 128, 128, 4, 0]


def test_replace_validates():
    config = DeepseekV4Config.preset("flash")
    assert config.replace(hidden_size=64).hidden_size == 64
    assert "expert_dtype" not in config.replace(expert_dtype=None).to_dict()
    with pytest.raises(ValueError, match="compress_ratios"):
        config.replace(num_hidden_layers=44)


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text.strip()
    assert "pydantic" not in text
    return text


IMPOSSIBLE = [
    ({"num_hidden_layers": 42}, "compress_ratios"),
    ({"num_nextn_predict_layers": 0}, "compress_ratios"),
    ({"compress_ratios": [0] * 43 + [4]}, "compress_ratios"),
    ({"compress_ratios": [1] + [0] * 43}, "compress_ratios"),
    ({"compress_ratios": []}, "compress_ratios"),
    ({"num_nextn_predict_layers": 2, "compress_ratios": [0] * 45}, "num_nextn_predict_layers"),
    ({"num_hash_layers": 44}, "num_hash_layers"),
    ({"o_groups": 7}, "o_groups"),
    ({"qk_rope_head_dim": 63}, "qk_rope_head_dim"),
    ({"qk_rope_head_dim": 514}, "qk_rope_head_dim"),
    ({"qk_rope_head_dim": 256}, "index_head_dim"),
    ({"num_experts_per_tok": 257}, "num_experts_per_tok"),
    ({"eos_token_id": 129280}, "eos_token_id"),
    ({"bos_token_id": -1}, "bos_token_id"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": -4096}, "hidden_size"),
    ({"sliding_window": 0}, "sliding_window"),
    ({"index_topk": 0}, "index_topk"),
    ({"hc_mult": 0}, "hc_mult"),
    ({"hc_sinkhorn_iters": 0}, "hc_sinkhorn_iters"),
    ({"num_key_value_heads": 2}, "num_key_value_heads"),
    ({"n_shared_experts": 2}, "n_shared_experts"),
    ({"scoring_func": "softmax"}, "scoring_func"),
    ({"topk_method": "greedy"}, "topk_method"),
    ({"norm_topk_prob": False}, "norm_topk_prob"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"attention_bias": True}, "attention_bias"),
    ({"attention_dropout": 0.1}, "attention_dropout"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
    ({"rope_scaling": {"type": "yarn", "factor": 16}}, "rope_scaling"),
    ({"swiglu_limit": 0}, "swiglu_limit"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
    ({"rope_theta": float("nan")}, "rope_theta"),
    ({"rope_theta": float("inf")}, "rope_theta"),
    ({"compress_rope_theta": 1.0}, "compress_rope_theta"),
]


@pytest.mark.parametrize(("change", "key"), IMPOSSIBLE, ids=lambda x: str(x)[:50])
def test_impossible_combinations_name_the_key(change: dict, key: str):
    with pytest.raises(ValueError, match=key) as error:
        DeepseekV4Config.from_dict(FLASH | change, "config.json")
    assert "config.json" in one_line(error)


WRONG_TYPES = [
    {"hidden_size": "4096"},
    {"hidden_size": 4096.5},
    {"hidden_size": None},
    {"hidden_size": True},
    {"hidden_size": [4096]},
    {"compress_ratios": "0,4"},
    {"compress_ratios": [0.5] * 44},
    {"compress_ratios": {"0": 4}},
    {"rope_scaling": "yarn"},
    {"rope_scaling": []},
    {"rope_theta": "10000"},
    {"norm_topk_prob": "true"},
]


@pytest.mark.parametrize("change", WRONG_TYPES, ids=str)
def test_wrong_types_name_the_key(change: dict):
    with pytest.raises(ValueError, match=next(iter(change))) as error:
        DeepseekV4Config.from_dict(FLASH | change, "config.json")
    one_line(error)


REQUIRED = ["vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "compress_ratios", "rope_theta", "hc_mult"]


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_named(key: str):
    with pytest.raises(ValueError, match=f"{key} is missing") as error:
        DeepseekV4Config.from_dict({name: value for name, value in FLASH.items() if name != key}, "config.json")
    one_line(error)


HOSTILE = {
    "a list": b"[1, 2]",
    "a number": b"7",
    "a string": b'"deepseek_v4"',
    "null": b"null",
    "nothing": b"",
    "binary": bytes(range(256)),
    "half a file": json.dumps(FLASH).encode()[:300],
    "YAML": b"hidden_size: 4096\n",
    "UTF-16": json.dumps(FLASH).encode("utf-16"),
    "an empty object": b"{}",
    "NaN": json.dumps(FLASH | {"hc_eps": float("nan")}).encode(),
    "infinity": json.dumps(FLASH | {"hc_eps": 1}).encode().replace(b'"hc_eps": 1', b'"hc_eps": 1e999'),
    "a lone surrogate": json.dumps(FLASH | {"x": "\ud800"}).encode(),
    "a very long number": json.dumps(FLASH).encode().replace(b"4096", b"9" * 5000),
    "very deep": b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_malformed_config_gives_one_line_that_names_the_file(tmp_path: Path, content: bytes):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        DeepseekV4Config.from_pretrained(tmp_path)
    assert len(one_line(error)) < 1000


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json") as error:
        DeepseekV4Config.from_pretrained(tmp_path)
    one_line(error)
    with pytest.raises(ValueError, match="nowhere"):
        DeepseekV4Config.from_pretrained(tmp_path / "nowhere")


def test_v41_has_its_own_message(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v41", "hidden_size": 5120}))
    with pytest.raises(ValueError, match=r"V4\.1") as error:
        DeepseekV4Config.from_pretrained(tmp_path)
    assert "deepseek_v41" in one_line(error)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "llama", "", 4, None, ["deepseek_v4"]])
def test_other_model_types_are_rejected(tmp_path: Path, model_type: object):
    (tmp_path / "config.json").write_text(json.dumps(FLASH | {"model_type": model_type}))
    with pytest.raises(ValueError, match="model_type") as error:
        DeepseekV4Config.from_pretrained(tmp_path)
    one_line(error)


def test_unknown_preset_lists_known_ones():
    with pytest.raises(ValueError, match="flash, flash-0731, flash-base, pro, pro-0813, tiny, tiny-0731, tiny-bytes"):
        DeepseekV4Config.preset("flahs")
