"""Tensors decoded and encoded in bands of rows."""

import pytest
import torch

from seektune.checkpoint.formats import QUANTIZED
from seektune.checkpoint.stored import BAND, Stored, bands_of, encode, is_stored_as
from seektune.kernels import dequantize_fp4, dequantize_fp8, quantize_fp4, quantize_fp8


def stored(kind: str, rows: int, columns: int) -> Stored:
    values = torch.randn(rows, columns)
    if kind == "bf16":
        return Stored(kind, values.bfloat16())
    encoder = {"fp4": quantize_fp4, "fp8": quantize_fp8}.get(kind)
    return Stored(kind, *(encoder(values) if encoder else quantize_fp8(values, power_of_two=False)))


@pytest.mark.parametrize(
    "shape", [(1, 1), (127, 4096), (128, 4096), (4096, 2048), (5000, 300), (3, 10**7), (0, 4), (4, 0)]
)
def test_bands_cover_every_row_once_and_split_no_block(shape: tuple[int, int]):
    rows, bands = shape[0], list(bands_of(shape))
    assert [row for band in bands for row in range(band.start, band.stop)] == list(range(rows))
    assert all(band.start % 128 == 0 for band in bands)
    assert all((band.stop - band.start) * shape[1] <= BAND or band.stop - band.start <= 128 for band in bands)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_non_matrix_is_one_band(shape: tuple[int, ...]):
    assert list(bands_of(shape)) == [...]
    x = torch.randn(shape)
    assert torch.equal(Stored("f32", x).part(...).values(), x)


@pytest.mark.parametrize("kind", ["fp4", "fp8", "fp8_f32", "bf16"])
def test_decoding_in_bands_equals_decoding_at_once(monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr("seektune.checkpoint.stored.BAND", 128 * 96)
    whole = stored(kind, 300, 96)
    assert len(list(bands_of(whole.shape))) == 3
    assert whole.shape == (300, 96)
    decode = {"fp4": dequantize_fp4, "bf16": lambda weight, _: weight}.get(kind, dequantize_fp8)
    assert torch.equal(whole.values(), decode(whole.weight, whole.scale))


@pytest.mark.parametrize("kind", ["fp4", "fp8", "fp8_f32", "bf16"])
def test_writing_bands_fills_the_whole(monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr("seektune.checkpoint.stored.BAND", 1)
    whole = stored(kind, 300, 96)
    room = Stored.empty(kind, whole.shape)
    for band in bands_of(whole.shape):
        room.part(band).copy_(whole.part(band))
    for name, x in whole.tensors("a.weight").items():
        y = room.tensors("a.weight")[name]
        assert y.dtype == x.dtype
        assert torch.equal(y.view(torch.uint8), x.view(torch.uint8))
    assert list(room.tensors("a.weight")) == (["a.weight"] if kind == "bf16" else ["a.weight", "a.scale"])


@pytest.mark.parametrize("kind", ["fp4", "fp8", "fp8_f32"])
@pytest.mark.parametrize("target", ["fp8", "fp8_f32", "fp8_f32_pow2", "bf16", "f32"])
def test_encoding_keeps_representable_values(kind: str, target: str):
    part = stored(kind, 256, 128)
    values = part.values()
    found = encode(part, values, target)
    assert found.kind == target
    lossy = kind == "fp8_f32" and target in ("fp8", "fp8_f32_pow2", "bf16")
    assert torch.equal(found.values().float(), values) != lossy


def test_f32_scales_are_copied_as_powers_of_two_only_if_they_are():
    kind = "fp8_f32_pow2"
    powers = Stored("fp8_f32", *QUANTIZED[kind].encode(torch.randn(256, 128)))
    others = stored("fp8_f32", 256, 128)
    assert [is_stored_as(each, kind) for each in (powers, others, stored("fp8", 256, 128))] == [True, False, False]
    assert is_stored_as(powers, "fp8_f32")
    assert is_stored_as(others, "fp8_f32")
    kept = encode(powers, powers.values(), kind)
    assert torch.equal(kept.weight.view(torch.uint8), powers.weight.view(torch.uint8))
    assert torch.equal(encode(powers, powers.values(), "fp8").values(), powers.values())
    assert is_stored_as(Stored("fp8_f32", *encode(others, others.values(), kind).tensors("a").values()), kind)
