"""Mapping names in both directions, compared with the reference's names and the released tables."""

import json
import lzma
from pathlib import Path

import pytest

from seektune.checkpoint.names import model_name, scale_name, slots
from seektune.model.causal_lm import checkpoint_shapes
from seektune.model.config import DeepseekV4Config
from tests.conftest import DSPARK


def released_shapes(c: DeepseekV4Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the reference, without scales, for a config of any size."""
    d, n, head, inner = c.hidden_size, c.hc_mult, c.head_dim, c.moe_intermediate_size
    table: dict[str, tuple[int, ...]] = {
        "embed.weight": (c.vocab_size, d),
        "head.weight": (c.vocab_size, d),
        "norm.weight": (d,),
        "hc_head_fn": (n, n * d),
        "hc_head_base": (n,),
        "hc_head_scale": (1,),
    }

    def compressor(prefix: str, ratio: int, width: int) -> dict[str, tuple[int, ...]]:
        channels = 2 * width if ratio == 4 else width
        return {
            f"{prefix}.ape": (ratio, channels),
            f"{prefix}.wkv.weight": (channels, d),
            f"{prefix}.wgate.weight": (channels, d),
            f"{prefix}.norm.weight": (width,),
        }

    def layer(prefix: str, number: int) -> dict[str, tuple[int, ...]]:
        attn, ffn, ratio = f"{prefix}.attn", f"{prefix}.ffn", c.compress_ratios[number]
        own: dict[str, tuple[int, ...]] = {f"{prefix}.attn_norm.weight": (d,), f"{prefix}.ffn_norm.weight": (d,)}
        for site in ("attn", "ffn"):
            own[f"{prefix}.hc_{site}_fn"] = (n * (n + 2), n * d)
            own[f"{prefix}.hc_{site}_base"] = (n * (n + 2),)
            own[f"{prefix}.hc_{site}_scale"] = (3,)
        own |= {
            f"{attn}.attn_sink": (c.num_attention_heads,),
            f"{attn}.wq_a.weight": (c.q_lora_rank, d),
            f"{attn}.wq_b.weight": (c.num_attention_heads * head, c.q_lora_rank),
            f"{attn}.wkv.weight": (head, d),
            f"{attn}.wo_a.weight": (c.o_groups * c.o_lora_rank, c.num_attention_heads * head // c.o_groups),
            f"{attn}.wo_b.weight": (d, c.o_groups * c.o_lora_rank),
            f"{attn}.q_norm.weight": (c.q_lora_rank,),
            f"{attn}.kv_norm.weight": (head,),
        }
        if ratio:
            own |= compressor(f"{attn}.compressor", ratio, head)
        if ratio == 4:
            own[f"{attn}.indexer.wq_b.weight"] = (c.index_n_heads * c.index_head_dim, c.q_lora_rank)
            own[f"{attn}.indexer.weights_proj.weight"] = (c.index_n_heads, d)
            own |= compressor(f"{attn}.indexer.compressor", 4, c.index_head_dim)
        own[f"{ffn}.gate.weight"] = (c.n_routed_experts, d)
        if number < c.num_hash_layers:
            own[f"{ffn}.gate.tid2eid"] = (c.vocab_size, c.num_experts_per_tok)
        else:
            own[f"{ffn}.gate.bias"] = (c.n_routed_experts,)
        for expert in ["shared_experts", *(f"experts.{e}" for e in range(c.n_routed_experts))]:
            own[f"{ffn}.{expert}.w1.weight"] = own[f"{ffn}.{expert}.w3.weight"] = (inner, d)
            own[f"{ffn}.{expert}.w2.weight"] = (d, inner)
        return own

    for number in range(c.num_hidden_layers):
        table |= layer(f"layers.{number}", number)
    for number in range(c.mtp_layers):
        prefix = f"mtp.{number}"
        table |= layer(prefix, c.num_hidden_layers)
        table |= {f"{prefix}.{name}.weight": (d, d) for name in ("e_proj", "h_proj")}
        table |= {f"{prefix}.{name}.weight": (d,) for name in ("enorm", "hnorm", "norm")}
        table |= {f"{prefix}.hc_head_fn": (n, n * d), f"{prefix}.hc_head_base": (n,), f"{prefix}.hc_head_scale": (1,)}
    for stage in range(c.dspark_stages):
        table |= layer(f"mtp.{stage}", c.num_hidden_layers + stage)
    if c.dspark_stages:
        rank, last = c.dspark_markov_rank, f"mtp.{c.dspark_stages - 1}"
        table |= {
            "mtp.0.main_proj.weight": (d, len(c.dspark_target_layer_ids) * d),
            "mtp.0.main_norm.weight": (d,),
            f"{last}.norm.weight": (d,),
            f"{last}.hc_head_fn": (n, n * d),
            f"{last}.hc_head_base": (n,),
            f"{last}.hc_head_scale": (1,),
            f"{last}.markov_head.markov_w1.weight": (c.vocab_size, rank),
            f"{last}.markov_head.markov_w2.weight": (c.vocab_size, rank),
            f"{last}.confidence_head.proj.weight": (1, d + rank),
        }
    return table


def state_shapes(config: DeepseekV4Config) -> dict[str, tuple[int, ...]]:
    return checkpoint_shapes(config)


def check(config: DeepseekV4Config, expected: dict[str, tuple[int, ...]]) -> None:
    shapes = state_shapes(config)
    found = list(slots(shapes))
    assert len({slot.released for slot in found}) == len(found)
    assert {slot.released: tuple(slot.shape) for slot in found} == expected
    # and back: every released name maps to its slot, and every tensor of the model is covered
    for slot in found:
        assert model_name(slot.released) == (slot.model, slot.expert)
    assert {slot.model for slot in found} == shapes.keys()


def test_toy_model_names_match_the_reference(toy_config):
    for config in (toy_config(), toy_config(**DSPARK)):
        check(config, released_shapes(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "file", "count"),
    [
        ("flash", "v4flash", 69_187),
        ("flash-0731", "v4flash0731", 72_317),
        pytest.param("pro", "v4pro", None, marks=pytest.mark.slow),
        pytest.param("pro-0813", "v4pro0813", 149_782, marks=pytest.mark.slow),
    ],
)
def test_every_released_tensor_maps_to_the_model(released: Path, preset, file, count):
    table = json.loads(lzma.decompress((released / f"{file}.tensors.json.xz").read_bytes()))
    assert count is None or len(table) == count
    expected, scaled = {}, set()
    for name, tensor in table.items():
        *rows, columns = tensor["shape"]
        if tensor["dtype"] == "F8_E8M0":
            scaled.add(name)
        else:
            expected[name] = (*rows, columns * (2 if tensor["dtype"] == "I8" else 1))
    check(DeepseekV4Config.preset(preset), expected)
    assert {scale_name(name) for name in expected if table[name]["dtype"] in ("I8", "F8_E4M3")} == scaled


@pytest.mark.parametrize(
    ("released", "model", "expert"),
    [
        ("embed.weight", "embed.weight", None),
        ("hc_head_fn", "hc_head.fn", None),
        ("layers.7.hc_attn_base", "layers.7.hc_attn.base", None),
        ("layers.7.hc_ffn_scale", "layers.7.hc_ffn.scale", None),
        ("layers.3.ffn.experts.12.w3.weight", "layers.3.ffn.experts.w3", 12),
        ("layers.3.ffn.shared_experts.w3.weight", "layers.3.ffn.shared_experts.w3.weight", None),
        ("layers.3.attn.indexer.wq_b.weight", "layers.3.attn.indexer.wq_b.weight", None),
        ("layers.3.attn.indexer.compressor.ape", "layers.3.attn.indexer.compressor.ape", None),
        ("mtp.0.hc_head_scale", "mtp.0.hc_head.scale", None),
        ("mtp.0.ffn.experts.0.w1.weight", "mtp.0.ffn.experts.w1", 0),
    ],
)
def test_name_mapping_examples(released, model, expert):
    assert model_name(released) == (model, expert)


def test_scale_name():
    assert scale_name("layers.0.attn.wq_a.weight") == "layers.0.attn.wq_a.scale"
    assert scale_name("layers.0.ffn.experts.3.w2.weight") == "layers.0.ffn.experts.3.w2.scale"
