"""A checkpoint without the blocks after the backbone gets those of its original."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seektune.checkpoint.compare import compare
from seektune.checkpoint.convert import convert
from seektune.checkpoint.drafter import with_drafter_keys
from seektune.io.config_json import read_config
from seektune.workflows.convert import convert_checkpoint


@pytest.fixture
def backbone(parity_folder: Path, tmp_path: Path) -> Path:
    """The release without its MTP block; its config.json still names one."""
    folder = tmp_path / "backbone"
    folder.mkdir()
    shutil.copy(parity_folder / "config.json", folder)
    tensors = {}
    for file in parity_folder.glob("model-*.safetensors"):
        tensors |= load_file(file)
    save_file({k: x for k, x in tensors.items() if not k.startswith("mtp.")}, folder / "model.safetensors")
    return folder


def without_mtp(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    changes = {"num_nextn_predict_layers": 0, "compress_ratios": config["compress_ratios"][:-1]}
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("names_one", [True, False], ids=["config names a block", "config names none"])
def test_the_block_of_the_original_is_copied(
    backbone: Path, parity_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names_one: bool
) -> None:
    source = backbone if names_one else without_mtp(backbone)
    convert_checkpoint(str(source), tmp_path / "out", "released", str(parity_folder))
    assert f"note: {source} has no mtp.* tensors; those of {parity_folder} are taken" in capsys.readouterr().out
    assert {each.status for each in compare(tmp_path / "out", parity_folder)} == {"same bytes"}
    config = read_config(tmp_path / "out")
    released = read_config(parity_folder)
    keys = ("num_nextn_predict_layers", "compress_ratios")
    assert [config[key] for key in keys] == [released[key] for key in keys]


def test_without_an_original_a_missing_block_is_refused_with_the_cure(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks mtp\.0\..* --original RELEASE takes the mtp\.\* tensors from the rel"):
        convert_checkpoint(str(backbone), tmp_path / "out", "bf16")
    done = convert_checkpoint(str(without_mtp(backbone)), tmp_path / "out", "bf16")
    assert read_config(done.folder)["num_nextn_predict_layers"] == 0


def test_a_source_keeps_a_block_of_its_own(parity_folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(parity_folder, tmp_path / "own"))
    file = next(file for file in own.glob("model-*.safetensors") if "mtp.0.norm.weight" in load_file(file))
    save_file(load_file(file) | {"mtp.0.norm.weight": torch.full((128,), 2.0).bfloat16()}, file)
    convert(own, tmp_path / "out", "released", original=parity_folder)
    different = [each.name for each in compare(tmp_path / "out", parity_folder) if not each.equal]
    assert different == ["mtp.0.norm.weight"]


def test_a_block_of_another_size_is_refused(backbone: Path, toy_model, tmp_path: Path) -> None:
    toy_model(torch.float32).save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"with the mtp\.\* tensors of .*other does not fit its config\.json: mtp\.0\."
    ):
        convert_checkpoint(str(backbone), tmp_path / "out", "bf16", str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_keys_of_dspark_stages_come_from_the_original() -> None:
    config = {"num_hidden_layers": 2, "compress_ratios": [0, 4], "num_nextn_predict_layers": 0, "use_cache": True}
    released = {
        "num_hidden_layers": 2,
        "compress_ratios": [0, 128, 0, 0, 0],
        "num_nextn_predict_layers": 1,
        "dspark_block_size": 5,
        "dspark_target_layer_ids": [0, 1],
    }
    assert with_drafter_keys(config, released) == {
        **released,
        "compress_ratios": [0, 4, 0, 0, 0],
        "use_cache": True,
    }
    with pytest.raises(ValueError, match="compress_ratios is missing or damaged"):
        with_drafter_keys(config, {"num_hidden_layers": 2})
