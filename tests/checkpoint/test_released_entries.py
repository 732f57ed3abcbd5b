"""Names of other tools, and stacks of experts, as the release's tensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from seektune.checkpoint.mmap import MmapFolder
from seektune.checkpoint.scan import scan
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.transformers_names import released_name, released_tensor, transformers_name

STACK = "model.layers.0.mlp.experts"


def saved(folder: Path, **tensors: Tensor) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_every_name_has_an_inverse(toy_model) -> None:
    for name in toy_model().state_dict():
        module = name.removesuffix(".weight")
        assert released_name(transformers_name(module)) == module
        assert released_tensor(name) == name, "a released name stays as it is"


@pytest.mark.parametrize(
    ("stored", "released"),
    [
        ("model.layers.3.attn.norm.weight", "layers.3.attn.kv_norm.weight"),
        ("model.layers.3.attn.compressor.norm.weight", "layers.3.attn.compressor.norm.weight"),
        ("model.layers.3.hc_attn_fn", "layers.3.hc_attn_fn"),
        ("model.hc_head.hc_scale", "hc_head_scale"),
        ("model.layers.3.mlp.experts.12.down_proj.weight", "layers.3.ffn.experts.12.w2.weight"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", "layers.3.ffn.gate.bias"),
        ("lm_head.weight", "head.weight"),
    ],
)
def test_names_of_saves(stored: str, released: str) -> None:
    assert released_tensor(stored) == released


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stack_is_cut_into_its_experts(tmp_path: Path, dtype: torch.dtype) -> None:
    gate_up = torch.randn(3, 8, 5).to(dtype)
    down = torch.randn(3, 5, 4).to(dtype)
    folder = saved(tmp_path, **{f"{STACK}.gate_up_proj": gate_up, f"{STACK}.down_proj": down, "odd": torch.ones(1)})
    source = FolderSource(folder)
    for expert in range(3):
        expected = {"w1": gate_up[expert, :4], "w3": gate_up[expert, 4:], "w2": down[expert]}
        for matrix, values in expected.items():
            name = f"layers.0.ffn.experts.{expert}.{matrix}.weight"
            assert torch.equal(source.values(name), values)
            assert torch.equal(source.values(name, slice(1, 3)), values[1:3])
            assert torch.equal(MmapFolder(folder).stored(name).values(), values)
            assert source.files.where(name).startswith(f"{STACK}.")
    assert scan(folder).tensors.keys() == source.files.names()


@pytest.mark.parametrize("shape", [(3, 7, 5), (24, 5), (0, 8, 5), (10**9, 2, 0)])
def test_a_stack_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = saved(tmp_path, **{f"{STACK}.gate_up_proj": torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"gate_up_proj of shape \[.*\], which no stack of experts has"):
        FolderSource(folder)
    assert "which no stack of experts has" in scan(folder).problems[0]


def test_one_tensor_in_two_spellings_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, **{"head.weight": torch.zeros(1), "lm_head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"head\.weight and .*head\.weight, two spellings of one tensor"):
        FolderSource(folder)
    assert "two spellings" in scan(folder).problems[0]


def test_a_tensor_is_named_in_messages_as_in_its_file(tmp_path: Path) -> None:
    folder = saved(
        tmp_path, **{"model.layers.0.self_attn.q_a_proj.weight": torch.zeros(2, 2, dtype=torch.float8_e4m3fn)}
    )
    with pytest.raises(ValueError, match=r"^model\.layers\.0\.self_attn\.q_a_proj\.weight in "):
        FolderSource(folder)
