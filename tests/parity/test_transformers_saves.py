"""What transformers and PEFT save is read wherever a checkpoint is read, and returns to the release's bytes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.checkpoint.compare import compare
from seektune.checkpoint.convert import convert
from seektune.lora.files import save_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.merge import merge
from seektune.lora.state import adapter_state
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.workflows.inspect import read_card

Saves = dict[str, Path]


@pytest.fixture(scope="module")
def plain(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release in bf16, as transformers' users have it."""
    return convert(parity_folder, tmp_path_factory.mktemp("plain") / "bf16", "bf16").folder


@pytest.fixture(scope="module")
def saves(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Saves:
    """The same weights saved by transformers: two dtypes, two spellings of names, several shards."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("saves")

    def save(name: str, dtype: torch.dtype, **options: Any) -> None:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=dtype)
        theirs.save_pretrained(folder / name, **options)

    save("bf16", torch.bfloat16)
    save("fp32", torch.float32, max_shard_size="1MB")
    save("own names", torch.bfloat16, save_original_format=False)
    return {name: folder / name for name in ("bf16", "fp32", "own names")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "fp32", "own names"])
def test_a_save_is_read_with_the_values_of_the_model(plain: Path, saves: Saves, name: str) -> None:
    ours = DeepseekV4ForCausalLM.from_pretrained(plain)
    theirs = DeepseekV4ForCausalLM.from_pretrained(saves[name])
    fields = set(DeepseekV4Config.model_fields)
    without_mtp = {"num_nextn_predict_layers": 0, "compress_ratios": ours.config.compress_ratios[:-1]}
    assert theirs.config.model_dump(include=fields) == ours.config.model_dump(include=fields) | without_mtp
    expected = ours.state_dict()
    found = theirs.state_dict()
    assert found.keys() == {name for name in expected if not name.startswith("mtp.")}
    for each, values in found.items():
        assert torch.equal(values, expected[each]), each


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "fp32", "own names"])
def test_a_save_returns_to_the_bytes_of_the_release(
    parity_folder: Path, saves: Saves, tmp_path: Path, name: str
) -> None:
    convert(saves[name], tmp_path / "back", "released", original=parity_folder)
    assert {each.status for each in compare(tmp_path / "back", parity_folder)} == {"same bytes"}
    config = DeepseekV4Config.from_pretrained(tmp_path / "back").to_dict()
    released = DeepseekV4Config.from_pretrained(parity_folder).to_dict()
    assert {key: config[key] for key in released.keys() - {"transformers_version"}} == {
        key: value for key, value in released.items() if key != "transformers_version"
    }


@pytest.mark.slow
def test_the_config_of_transformers_beside_the_names_of_the_release(
    parity_folder: Path, saves: Saves, tmp_path: Path
) -> None:
    """As Megatron-Bridge exports a model, MTP block included."""
    folder = Path(shutil.copytree(parity_folder, tmp_path / "export"))
    shutil.copy(saves["bf16"] / "config.json", folder)
    assert DeepseekV4ForCausalLM.from_pretrained(folder).mtp
    card = read_card(folder)
    assert card.complete
    assert card.architecture is not None
    assert card.architecture.mtp_blocks == 1
    assert not any("mtp" in note for note in card.notes)


def test_what_a_save_lacks_is_said_with_the_way_to_get_it(saves: Saves) -> None:
    card = read_card(saves["own names"])
    assert card.complete
    assert card.architecture is not None
    assert card.architecture.mtp_blocks == 0
    assert any("leaves out the mtp.* tensors" in note and "--original" in note for note in card.notes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::FutureWarning")
@torch.no_grad()
def test_a_merge_of_peft_is_read_and_an_adapter_is_merged_into_it(
    parity_folder: Path, plain: Path, saves: Saves, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    ours = DeepseekV4ForCausalLM.from_pretrained(plain)
    adapt(ours, matching(ours, ("attn", "ffn.experts")), AdapterShape(rank=2, alpha=4.0))
    init_adapters(ours, seed=0)
    for name, tensor in adapter_state(ours).items():
        if name.endswith(".B") and not name.startswith("mtp."):
            tensor.normal_(0.0, 0.05)
    save_adapter(ours, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_mtp.safetensors").unlink()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
    merge(saves["fp32"], tmp_path / "adapter", tmp_path / "ours", "fp32")
    results = list(compare(tmp_path / "merged", tmp_path / "ours", tolerance=1e-6))
    assert all(each.equal for each in results)
    changed = [each.name for each in compare(tmp_path / "merged", saves["fp32"]) if not each.equal]
    assert len(changed) > 50

    convert(tmp_path / "merged", tmp_path / "released", "released", original=parity_folder)
    kept = {each.name for each in compare(tmp_path / "released", parity_folder) if each.status == "same bytes"}
    assert {name for name in kept if name.startswith("mtp.")}
    assert not kept & set(changed)


@pytest.mark.slow
@torch.no_grad()
def test_a_tune_of_transformers_has_its_logits_here(
    toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    toy_model(torch.float32).save_pretrained(tmp_path / "base", format="fp32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32, attn_implementation="eager"
    )
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.01)
    theirs.save_pretrained(tmp_path / "saved")
    ids = torch.randint(64, (2, 150))
    ours = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "saved")
    assert (ours(ids).logits - theirs(ids, use_cache=False).logits).abs().max() <= 1e-4
