"""The table of variants: each is recognized by its architecture, and says which chat encoding it was trained with."""

from importlib import resources

import pytest

from seektune.data.chat_format.encodings import ENCODINGS
from seektune.model.config import DeepseekV4Config
from seektune.model.variants import PRESETS, VARIANTS, describe_variant, encoding_of, variant_name, variant_of
from tests.places import ROOT


def test_each_variant_is_a_preset_and_each_preset_a_variant():
    files = resources.files("seektune.model").joinpath("presets").iterdir()
    assert sorted(PRESETS) == sorted(file.name.removesuffix(".json") for file in files)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_recognized_by_its_config(variant):
    config = DeepseekV4Config.preset(variant.name)
    found = variant_of(config.replace(eos_token_id=2, transformers_version="1"))
    # the base model differs from the preview in its format alone
    assert found is not None
    assert variant.name.startswith(found.name)
    assert encoding_of(config) == variant.encoding
    assert variant.encoding in ENCODINGS
    assert ("0731" in variant.name or "0813" in variant.name) == (config.dspark_stages == 3)


@pytest.mark.parametrize(
    ("preset", "format", "name"),
    [
        ("flash", "released", "flash"),
        ("flash", "base", "flash-base"),
        ("flash-base", "base", "flash-base"),
        ("pro", "base", "pro-base"),
        ("flash-0731", "released", "flash-0731"),
        ("flash-0731", "base", "flash-0731"),
        ("pro-0813", "bf16", "pro-0813"),
    ],
)
def test_names_of_checkpoints(preset, format, name):
    assert variant_name(DeepseekV4Config.preset(preset), format) == name


def test_an_unknown_architecture_has_the_encoding_of_its_drafter():
    for preset, encoding in (("tiny", "preview"), ("tiny-0731", "0731")):
        config = DeepseekV4Config.preset(preset).replace(hidden_size=256)
        assert variant_of(config) is None
        assert variant_name(config, "bf16") == "other"
        assert encoding_of(config) == encoding


def test_a_variant_is_described_with_its_repositories():
    text = describe_variant("flash-0731")
    assert text.startswith("flash-0731: release of 31 July, three DSpark stages (")
    assert "deepseek-ai/DeepSeek-V4-Flash-0731 or deepseek-ai/DeepSeek-V4-Flash-DSpark" in text
    assert describe_variant("other") == "other"


def test_the_guide_names_every_release():
    """The table of models in docs/finetune.md has each preset beside its repository."""
    page = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    for variant in VARIANTS:
        assert not variant.repositories or f"| `{variant.name}` | `{variant.repositories[0]}` |" in page
