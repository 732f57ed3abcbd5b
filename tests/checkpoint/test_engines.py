"""What inference engines expect of a checkpoint, by version, against every format that is written.

The table holds what the engines' own parameters and loaders took, on real or made-up files.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.checkpoint.convert import convert
from seektune.checkpoint.formats import EXPERTS, FORMATS, LINEARS, READABLE
from seektune.checkpoint.scan import FolderScan, scan
from seektune.lora.delta import LoraDelta
from seektune.lora.format import write_adapter
from seektune.lora.merge import merge
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.places import ROOT

ENGINES: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "fixtures" / "engines.json").read_text())
READERS = {
    "released": {"vllm", "sglang", "transformers", "kt-kernel", "llama.cpp"},
    "fp8": {"vllm", "sglang", "transformers"},
    "base": {"vllm", "sglang", "transformers"},
    "bf16": {"vllm", "sglang", "transformers"},
    "fp32": {"vllm", "sglang", "transformers"},
    "fp8-e8m0": {"sglang", "transformers"},
}
"""Which engines read which format exactly."""


@pytest.fixture(scope="module")
def exported(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "fp8-e8m0", READABLE["fp8-e8m0"])
        return {name: convert(parity_folder, folder / name, name).folder for name in READABLE}


def pairs(found: FolderScan, pattern: str) -> set[tuple[str, str | None]]:
    names = [name for name in found.weights() if re.search(pattern, name)]
    assert names
    return {(found.tensors[name].dtype, found.scale_dtype(name)) for name in names}


def reads(engine: str, folder: Path) -> bool:
    """Whether an engine's parameters have the dtypes, names and config keys of a folder."""
    expected = ENGINES[engine]
    config = json.loads((folder / "config.json").read_text())
    found = scan(folder)
    quantization = config.get("quantization_config")
    # without the key, engines take quantized experts for FP4
    experts = expected["experts"].get("none" if quantization is None else config.get("expert_dtype", "fp4"), [])
    assert all(name.startswith(tuple(expected["prefixes"])) for name in found.tensors)
    assert quantization is None or quantization.items() >= expected["quantized_config"].items()
    return pairs(found, EXPERTS) <= set(map(tuple, experts)) and pairs(found, LINEARS) <= set(
        map(tuple, expected["linears"])
    )


@pytest.mark.parametrize("format", READERS)
def test_engines_that_read_each_format(exported: Mapping[str, Path], format: str):
    assert READERS.keys() == READABLE.keys()
    assert {engine for engine in ENGINES if reads(engine, exported[format])} == READERS[format]


def test_the_page_says_which_engine_reads_which_format():
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    table = re.search(r"\n(\| read by .*?)\n\n", page, re.DOTALL)
    assert table is not None
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    engines = [cell.split()[0].lower() for cell in head[1:]]
    versions = {cell.split()[0].lower(): cell.split(maxsplit=1)[1] for cell in head[1:]}
    assert versions == {engine: facts["version"] for engine, facts in ENGINES.items()}
    found = {
        row[0].strip("`"): {engine for engine, cell in zip(engines, row[1:], strict=True) if cell.startswith("yes")}
        for row in rows
    }
    assert {name: readers for name, readers in found.items() if name in READERS} == READERS


@pytest.fixture(scope="module")
def base(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    toy_model(torch.float32, hidden_size=64, moe_intermediate_size=32).save_pretrained(folder, format="released")
    return folder


def names_of(engine: str, ignored: Sequence[str]) -> list[str]:
    """The names as the engine compares them: vLLM renames released ones, SGLang adds `model.`."""
    if engine == "vllm":
        return [re.sub(r"^layers\.", "model.layers.", name) for name in ignored]
    return [f"model.{name.removeprefix('model.')}" for name in ignored]


def is_unquantized(engine: str, module: str, ignored: Sequence[str]) -> bool:
    """Whether an engine loads a module without scales; an error if only a part of it is listed."""
    names = names_of(engine, ignored)
    parent, _, leaf = module.rpartition(".")
    if shards := ENGINES[engine]["shards"].get(leaf):
        listed = {f"{parent}.{shard}" in names for shard in shards}
        assert len(listed) == 1, f"only a part of {module} is listed"
        return listed.pop()
    return module in names or (leaf == "experts" and any(module in name for name in names))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    "changed",
    [("attn.wkv",), ("attn.wq_b", "attn.wo_a"), ("ffn.experts.w2",), ("attn.wq_a", "ffn.experts.w1", "attn.wo_b")],
    ids=lambda names: " ".join(names),
)
def test_mixed_bf16_is_unquantized_where_engines_load_it(base: Path, tmp_path: Path, engine: str, changed):
    """In a changed layer and in another one, and in the MTP block by the names of the drafters."""
    found = scan(base)

    def change(block: str, name: str) -> LoraDelta:
        if ".experts." in name:
            rows, columns = (64, 32) if name.endswith("w2") else (32, 64)
            return LoraDelta(torch.randn(8, 1, columns), torch.randn(8, rows, 1), 1.0)
        rows, columns = found.tensors[f"{block}.{name}.weight"].shape
        return LoraDelta(torch.randn(1, columns), torch.randn(rows, 1), 1.0)

    write_adapter(
        tmp_path / "a",
        {f"{block}.{name}": change(block, name) for block in ("layers.1", "mtp.0") for name in changed},
        {},
    )
    merge(base, tmp_path / "a", tmp_path / "out", "mixed-bf16", force=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    ignored = config["quantization_config"]["modules_to_not_convert"]
    out = scan(tmp_path / "out")
    drafter = config["num_hidden_layers"]
    for module, parts in ENGINES[engine]["modules"].items():
        for block, layer in (("layers.1", "1"), ("layers.2", "2"), ("mtp.0", str(drafter))):
            name = module.format(layer=layer)
            if engine == "sglang" and block == "mtp.0":
                name = name.replace(f"layers.{drafter}", "decoder")
            kinds = {out.kind(f"{block}.{part}.weight") for part in parts}
            assert len(kinds) == 1, f"{name} is loaded as one parameter"
            assert is_unquantized(engine, name, ignored) == (kinds == {"bf16"}), name
