"""A whole attention layer with its indexer, compared with loops over documents, queries and heads."""

import math

import pytest
import torch
from torch import Tensor

from seektune.kernels import Chosen, Prefix, fake_quantize_fp4, fake_quantize_fp8, hadamard
from seektune.model.attention import Attention
from seektune.model.config import DeepseekV4Config
from seektune.sequence import SequenceLayout

EPS = 1e-6


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + EPS).sqrt()


def rotate_by(rope, x: Tensor, t: int, sign: int = 1) -> Tensor:
    """Rotate the last columns of a vector: as complex numbers, times e^(i t f)."""
    angles = t * rope.frequencies()
    dim = 2 * len(angles)
    factors = torch.complex(angles.cos().double(), sign * angles.sin().double())  # the tables are fp32
    pairs = torch.view_as_complex(x[..., -dim:].unflatten(-1, (-1, 2)).contiguous())
    rotated = torch.view_as_real(pairs * factors).flatten(-2)
    return torch.cat([x[..., :-dim], rotated], dim=-1)


def pool(compressor, x: Tensor, ratio: int, width: int) -> list[Tensor]:
    """Entries of one document, before any rounding."""
    values, gates = x @ compressor.wkv.weight.T, x @ compressor.wgate.weight.T
    entries = []
    for i in range(len(x) // ratio):
        now = slice(i * ratio, (i + 1) * ratio)
        if ratio == 4:
            g, v = [gates[now, width:] + compressor.ape[:, width:]], [values[now, width:]]
            if i:
                before = slice((i - 1) * ratio, i * ratio)
                g.append(gates[before, :width] + compressor.ape[:, :width])
                v.append(values[before, :width])
            g, v = torch.cat(g), torch.cat(v)
        else:
            g, v = gates[now] + compressor.ape, values[now]
        entry = compressor.norm.weight * rms((g.softmax(dim=0) * v).sum(dim=0))
        entries.append(rotate_by(compressor.rope, entry, i * ratio))
    return entries


def reference_attention(
    attention: Attention, x: Tensor, config: DeepseekV4Config, ratio: int, released: bool
) -> Tensor:
    """Attention of one document `[T, d]`, written as loops."""
    heads, width, dim = config.num_attention_heads, config.head_dim, config.qk_rope_head_dim

    def cached(key: Tensor) -> Tensor:
        return torch.cat([fake_quantize_fp8(key[:-dim]), key[-dim:]]) if released else key

    def indexed(x: Tensor) -> Tensor:
        return fake_quantize_fp4(hadamard(x)) if released else x

    residual = attention.q_norm.weight * rms(x @ attention.wq_a.weight.T)
    q = rms((residual @ attention.wq_b.weight.T).view(-1, heads, width))
    keys = attention.kv_norm.weight * rms(x @ attention.wkv.weight.T)
    keys = [cached(rotate_by(attention.rope, key, t)) for t, key in enumerate(keys)]
    entries = [cached(entry) for entry in pool(attention.compressor, x, ratio, width)] if ratio else []
    if ratio == 4:
        indexer = attention.indexer
        index_keys = [indexed(key) for key in pool(indexer.compressor, x, 4, config.index_head_dim)]
    out = []
    for t in range(len(x)):
        visible = list(range((t + 1) // ratio)) if ratio else []
        if ratio == 4 and len(visible) > config.index_topk:
            iq = (residual[t] @ indexer.wq_b.weight.T).view(config.index_n_heads, config.index_head_dim)
            iq = indexed(rotate_by(attention.rope, iq, t))
            w = indexer.weights_proj.weight @ x[t] / math.sqrt(config.index_head_dim * config.index_n_heads)
            scores = {j: (w * (iq @ index_keys[j]).relu()).sum().item() for j in visible}
            visible = sorted(visible, key=scores.get, reverse=True)[: config.index_topk]
        values = torch.stack(keys[max(0, t - config.sliding_window + 1) : t + 1] + [entries[j] for j in visible])
        row = []
        for h in range(heads):
            weights = (values @ rotate_by(attention.rope, q[t, h], t) / math.sqrt(width)).exp()
            o = weights @ values / (weights.sum() + attention.attn_sink[h].exp())
            row.append(rotate_by(attention.rope, o, t, sign=-1))
        grouped = torch.cat(row).view(config.o_groups, -1)
        rank = config.o_lora_rank
        z = [attention.wo_a.weight[g * rank : (g + 1) * rank] @ grouped[g] for g in range(config.o_groups)]
        out.append(attention.wo_b.weight @ torch.cat(z))
    return torch.stack(out)


LENGTHS = {0: (3, 1, 20), 4: (5, 1, 61, 3, 16), 128: (129, 127, 2)}
LAYER = {0: 0, 4: 1, 128: 2}


def packed(ratio: int) -> Tensor:
    numbers = [number for number, length in enumerate(LENGTHS[ratio], start=1) for _ in range(length)]
    return torch.tensor([[0, 0, *numbers, 0]])


@pytest.mark.parametrize("numerics", ["plain", "released"])
@pytest.mark.parametrize("ratio", [0, 4, 128])
@pytest.mark.slow
def test_layer_equals_loops_for_each_document(toy_model, ratio, numerics):
    model = toy_model(numerics=numerics)
    attention = model.layers[LAYER[ratio]].attn
    documents = packed(ratio)
    layout = SequenceLayout.from_documents(documents)
    x = torch.randn(1, documents.shape[1], 32, dtype=torch.float64, requires_grad=True)
    found = attention(x, layout)
    parts = []
    for number in range(1, len(LENGTHS[ratio]) + 1):
        own = documents[0] == number
        expected = reference_attention(attention, x[0, own], model.config, ratio, numerics == "released")
        torch.testing.assert_close(found[0, own], expected, rtol=1e-8, atol=1e-9)
        parts.append((found[0, own], expected))
    leaves = [x, *(p for name, p in attention.named_parameters() if "indexer" not in name)]
    upstream = [torch.randn_like(expected) for _, expected in parts]
    gradients = torch.autograd.grad([found for found, _ in parts], leaves, upstream)
    by_loops = torch.autograd.grad([expected for _, expected in parts], leaves, upstream)
    for gradient, reference in zip(gradients, by_loops, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-7, atol=1e-9)


def test_indexer_chooses_only_with_more_entries_than_top_k(toy_model):
    model = toy_model()
    seen = []
    indexer = model.layers[1].attn.indexer
    indexer.register_forward_hook(lambda _m, _i, out: seen.append(out))
    for length in (8 * 4, 8 * 4 + 3, 9 * 4):
        model(torch.zeros(1, length, dtype=torch.long))
    assert [type(choice) for choice in seen] == [Prefix, Prefix, Chosen]


@torch.no_grad()
def test_top_k_of_all_entries_equals_no_choice(toy_model):
    tokens = torch.randint(64, (1, 100))
    all_but_one, everything = toy_model(index_topk=24), toy_model(index_topk=25)
    # 24 of 25: only the last query sees 25 entries and leaves one out
    found, expected = all_but_one(tokens).logits, everything(tokens).logits
    assert (found[:, :99] - expected[:, :99]).abs().max() < 1e-10
    assert (found[:, 99] - expected[:, 99]).abs().max() > 1e-9


def test_indexer_requires_no_gradient(toy_model):
    model = toy_model()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".indexer." in name}
    model(torch.zeros(1, 60, dtype=torch.long)).logits.sum().backward()
    assert all(model.get_parameter(name).grad is None for name in frozen)


def test_released_numerics_need_a_power_of_two_index_width(toy_config, toy_model):
    with pytest.raises(ValueError, match="index_head_dim"):
        toy_model(numerics="released", index_head_dim=24)
    with pytest.raises(ValueError, match="plain or released"):
        toy_model(numerics="exact")
    assert toy_model(index_head_dim=24)
