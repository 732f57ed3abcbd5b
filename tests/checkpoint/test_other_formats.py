"""What is not read is named as what it is, with what to do, by every way to read a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seektune.checkpoint import locate
from seektune.checkpoint.scan import scan
from seektune.checkpoint.source import FolderSource
from seektune.model.config import DeepseekV4Config
from seektune.workflows.inspect import read_card

GGUF = r"V4-Q4\.gguf is GGUF, the format of llama\.cpp, and is not read; use the safetensors checkpoint"
PICKLE = r"pytorch_model-00001-of-00002\.bin is a pickle, which can run code, and is not read; save it as safetensors"


@pytest.mark.parametrize(
    ("name", "said"), [("V4-Q4.gguf", GGUF), ("pytorch_model-00001-of-00002.bin", PICKLE)], ids=["GGUF", "pickle"]
)
def test_files_of_other_formats(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    ways: list[Callable[[], object]] = [
        lambda: locate(tmp_path),
        lambda: locate(tmp_path / name),
        lambda: scan(tmp_path / name),
        lambda: FolderSource(tmp_path),
        lambda: DeepseekV4Config.from_pretrained(tmp_path),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=said):
            way()
    assert len(read_card(tmp_path).problems) == 1


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model/config.json", r"this is the folder of a run: name .*/model"),
        ("adapter_config.json", "this is an adapter: name its base as the model, and this folder as the adapter"),
        ("other.json", "a checkpoint folder holds config.json beside its safetensors"),
    ],
)
def test_another_folder_is_answered_with_the_one_that_is_meant(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / file).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"config\.json does not exist; {said}"):
        DeepseekV4Config.from_pretrained(tmp_path)


def test_such_a_file_beside_a_checkpoint_is_of_no_importance(tmp_path: Path) -> None:
    (tmp_path / "V4-Q4.gguf").write_bytes(b"GGUF")
    save_file({"head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert locate(tmp_path) == tmp_path
    assert FolderSource(tmp_path).holds("head.weight")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layers.1.engram.embed.weight", "the Engram memory of V4.1"),
        ("vision.blocks.0.attn.qkv.weight", "the image encoder of V4-Flash-Vision-Exp or V4.1"),
        ("image_newline", "the image encoder of V4-Flash-Vision-Exp or V4.1"),
        ("layers.3.ffn.gate.bias_vl", "the image routing of V4-Flash-Vision-Exp or V4.1"),
    ],
)
def test_tensors_of_other_models(tmp_path: Path, name: str, said: str) -> None:
    save_file({"head.weight": torch.zeros(1), name: torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"holds {name}, {said}, which is not supported; choose a text checkpoint"):
        FolderSource(tmp_path)
    assert said in scan(tmp_path).problems[0]
