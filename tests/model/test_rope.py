"""Rotary position embedding: columns, pairs, and angles of each layer."""

import cmath
import math

import pytest
import torch

from seektune.model.config import DeepseekV4Config
from seektune.model.rope import Rope

FLASH = DeepseekV4Config.preset("flash")


def yarn(dim: int, theta: float, i: int, low: int, high: int, factor: float) -> float:
    plain = theta ** (-2 * i / dim)
    unscaled = 1 - min(max((i - low) / (high - low), 0), 1)
    return plain * unscaled + plain / factor * (1 - unscaled)


def test_uncompressed_layer_has_plain_rope():
    found = Rope.of_layer(FLASH, 0).frequencies()
    assert found.tolist() == pytest.approx([10000 ** (-2 * i / 64) for i in range(32)], rel=1e-5)


@pytest.mark.parametrize("ratio", [4, 128])
def test_compressed_layer_has_yarn(ratio):
    found = Rope.of_layer(FLASH, ratio).frequencies().tolist()
    assert found == pytest.approx([yarn(64, 160000, i, 15, 25, 16) for i in range(32)], rel=1e-5)
    plain = [160000 ** (-2 * i / 64) for i in range(32)]
    assert [i for i in range(32) if found[i] == pytest.approx(plain[i], rel=1e-5)] == list(range(16))
    assert [i for i in range(32) if found[i] == pytest.approx(plain[i] / 16, rel=1e-5)] == list(range(25, 32))


def test_compressed_layer_without_scaling_has_its_own_theta():
    config = FLASH.replace(rope_scaling=None)
    found = Rope.of_layer(config, 4).frequencies()
    assert found.tolist() == pytest.approx([160000 ** (-2 * i / 64) for i in range(32)], rel=1e-5)


def test_all_parts_of_a_layer_use_the_same_angles(toy_model):
    """Queries, window keys, entries and index keys: angles depend on the layer, not on the submodule."""
    model = toy_model()
    for layer, block in enumerate([*model.layers, *model.mtp]):
        expected = Rope.of_layer(model.config, model.config.ratio(layer)).frequencies()
        ropes = [module.rope for module in block.modules() if hasattr(module, "rope")]
        assert len(ropes) == {0: 1, 128: 2, 4: 3}[model.config.ratio(layer)]
        assert all(torch.equal(rope.frequencies(), expected) for rope in ropes)
    first, second = (model.layers[layer].attn.rope.frequencies() for layer in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("width", "dim"), [(512, 64), (128, 64), (48, 16), (16, 16)])
def test_last_columns_are_rotated_in_adjacent_pairs(width, dim):
    rope = Rope(dim, 500.0, None)
    x = torch.randn(2, 9, width, dtype=torch.float64)
    positions = torch.tensor([list(range(9)), [0, 5, 5, 100, 3, 2, 1, 0, 7]])
    found = rope(positions)(x)
    start = width - dim
    assert torch.equal(found[..., :start], x[..., :start])
    for b in range(2):
        for t in range(9):
            for i in range(dim // 2):
                re, im = x[b, t, start + 2 * i].item(), x[b, t, start + 2 * i + 1].item()
                rotated = complex(re, im) * cmath.exp(1j * positions[b, t].item() * 500.0 ** (-2 * i / dim))
                pair = found[b, t, start + 2 * i : start + 2 * i + 2].tolist()
                assert pair == pytest.approx([rotated.real, rotated.imag], abs=2e-4)


def test_inverse_rotates_back_and_norms_are_kept():
    rope = Rope.of_layer(FLASH, 4)
    rotation = rope(torch.arange(300)[None]).over_heads
    x = torch.randn(1, 300, 3, 512, dtype=torch.float64)
    rotated = rotation(x)
    assert (rotated[:, 1:] - x[:, 1:]).abs().max() > 1
    # no mscale: YaRN changes only angles
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(rotation.inverse(rotated), x, rtol=1e-6, atol=1e-6)


def test_products_depend_only_on_distance():
    rope = Rope(16, 100.0, None)
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64)

    def product(t: int, s: int) -> float:
        return (rope(torch.tensor([[t]]))(q) * rope(torch.tensor([[s]]))(k)).sum().item()

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(3, 7), abs=1e-3)


def test_angles_are_fp32_in_a_bf16_model():
    """At position 1000 an angle in bf16 would be off by whole radians."""
    rope = Rope.of_layer(FLASH, 0)
    rotation = rope(torch.tensor([[1000]]))
    assert rotation.cos.dtype == rotation.sin.dtype == torch.float32
    assert rotation.cos[0, 0, 0].item() == pytest.approx(math.cos(1000), abs=1e-6)
    x = torch.randn(1, 1, 64)
    found = rotation(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotation(x.bfloat16().float()).bfloat16())
