"""Reading and writing adapter files; faulty ones are rejected with a message that names the fault."""

import json
import os
import re
import resource
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from seektune.io.patterns import matched
from seektune.lora.delta import LoraDelta
from seektune.lora.format import CONFIG, MTP_WEIGHTS, WEIGHTS, read_adapter, write_adapter
from seektune.lora.peft_config import PeftConfig

NAME = "layers.0.attn.wq_b"
KEY = "base_model.model.model.layers.0.self_attn.q_b_proj"
EXPERTS = "layers.0.ffn.experts"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of one linear layer."""
    write_adapter(tmp_path / "adapter", {NAME: LoraDelta(torch.randn(2, 8), torch.randn(6, 2), 2.0)}, {})
    return tmp_path / "adapter"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}


def test_write_read_round_trip(folder: Path) -> None:
    changes = read_adapter(folder).changes
    assert list(changes) == [NAME]
    assert changes[NAME].scaling == 2.0


@pytest.mark.parametrize("matrices", [("w1",), ("w3",), ("w2",), ("w1", "w3"), ("w1", "w2", "w3")])
@pytest.mark.parametrize("block", ["layers.0", "mtp.0"])
def test_matrices_of_experts_return_as_what_they_were(tmp_path: Path, block: str, matrices: tuple[str, ...]) -> None:
    """In the MTP block, too, whose targets the config does not name."""
    shapes = {"w1": (6, 8), "w2": (8, 6), "w3": (6, 8)}
    changes = {
        f"{block}.ffn.experts.{name}": LoraDelta(
            torch.randn(3, 2, shapes[name][1]), torch.randn(3, shapes[name][0], 2), 2.0
        )
        for name in matrices
    } | {NAME: LoraDelta(torch.randn(2, 8), torch.randn(6, 2), 2.0)}
    write_adapter(tmp_path / "adapter", changes, {})
    found = read_adapter(tmp_path / "adapter").changes
    assert found.keys() == changes.keys()
    for name, change in changes.items():
        assert torch.equal(found[name].a, change.a)
        assert torch.equal(found[name].b, change.b)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_non_finite_values_are_rejected(folder: Path, number: float) -> None:
    found = tensors(folder)
    first = next(iter(found))
    found[first][0, 1] = number
    save_file(found, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"not finite: {first}"):
        read_adapter(folder)


def test_missing_extra_and_truncated_tensors_are_rejected(folder: Path) -> None:
    found = tensors(folder)
    low, high = sorted(found)
    for wrong in (
        {low: found[low]},
        {high: found[high]},
        found | {low.replace("lora_A", "lora_C"): found[low].clone()},
        found | {low: found[low][:1].clone()},
    ):
        save_file(wrong, folder / WEIGHTS)
        with pytest.raises(ValueError, match="cannot be used"):
            read_adapter(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(ValueError, match="is damaged or truncated"):
        read_adapter(folder)


def configured(folder: Path, **keys: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **keys}))
    return folder


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"r": 4}, r"has rank 2, but 4 in its config"),
        ({"r": 0}, r"its r is 0, not a whole number of 1 or more"),
        ({"r": None}, r"its r is None"),
        ({"r": [2]}, r"its r is \[2\]"),
        ({"lora_alpha": float("nan")}, "its lora_alpha is nan, not a finite number"),
        ({"lora_alpha": 10**400}, "its lora_alpha is 1000"),
        ({"lora_alpha": "4"}, "its lora_alpha is '4'"),
        ({"rank_pattern": [1]}, "its rank_pattern is not an object"),
        ({"alpha_pattern": {"q_b_proj": float("inf")}}, "its alpha_pattern of .*q_b_proj is inf"),
        ({"alpha_pattern": {"(": 1}}, r"patterns of rank or alpha hold .*\("),
        ({"target_parameters": "x"}, "its target_parameters is not a list"),
        ({"modules_to_save": ["head"]}, r"more than low-rank changes of weights \(modules_to_save\)"),
        ({"trainable_token_indices": [1]}, r"\(trainable_token_indices\)"),
        ({"bias": "all"}, r"\(bias\)"),
        ({"init_lora_weights": "pissa_niter_4"}, "also changes base weights .*pissa_niter_4"),
        ({"use_dora": True}, "it lacks .*lora_magnitude_vector"),
        ({"use_dora": "no"}, "its use_dora is 'no', not true or false"),
        ({"use_rslora": 1}, "its use_rslora is 1, not true or false"),
        ({"use_future": True}, "its config has use_future, which SeekTune does not know"),
        ({"lora_future": 3}, "its config has lora_future, which"),
        ({"future_config": {"a": 1}}, "its config has future_config, which"),
        (
            {"rank_pattern": {"(?=x)q_b_proj": 2}},
            r"patterns of rank or alpha hold '\(\?=x\)q_b_proj', which is invalid",
        ),
        ({"rank_pattern": {"\ud800*": 2}}, "patterns of rank or alpha hold .*, which is invalid"),
        (
            {"rank_pattern": {f"(a|b)*{i}": 2 for i in range(257)}},
            "rank_pattern has 257 regular expressions, of which at most 256 are read",
        ),
        ({"alpha_pattern": {"(x{1000}){1000}": 2}}, "patterns of rank or alpha hold .*, which is invalid"),
    ],
)
def test_unsupported_configs_are_rejected(folder: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_adapter(configured(folder, **keys))


def test_patterns_match_suffixes_as_in_peft(folder: Path) -> None:
    configured(
        folder, r=7, lora_alpha=1, rank_pattern={"o_proj": 3, "layers.*q_b_proj": 2}, alpha_pattern={"q_b_proj": 6}
    )
    assert read_adapter(folder)[0][NAME].scaling == 3.0
    configured(folder, rank_pattern={"b_proj": 3}, r=2, alpha_pattern={"o_proj": 5})
    assert read_adapter(folder)[0][NAME].scaling == 0.5


def test_harmless_keys_are_passed_over(folder: Path) -> None:
    configured(folder, runtime_config={"ephemeral_gpu_offload": False}, use_future=False, note="mine", lora_dropout=0.1)
    configured(folder, loftq_config={"loftq_bits": 4}, megatron_config=None, qalora_group_size=16)
    assert list(read_adapter(folder).changes) == [NAME]


PATTERNS = (
    "q_b_proj",
    "q.b_proj",
    "b_proj",
    r"layers\.(?:0|[2-9])\..*q_b_proj",
    r"layers\.\d+\.self_attn\.(q_a|q_b)_proj",
    r"^model.layers.0.self_attn.q_b_proj",
    r".*\.q_b_proj$",
    r"(self_attn|mlp)\.\w+",
    r"[a-z_]+",
    "x*",
    "",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_the_expression_of_peft(pattern: str) -> None:
    for target in ("model.layers.0.self_attn.q_b_proj", "model.layers.1.self_attn.q_b_proj", "lm_head", "q_b_proj"):
        terms = PeftConfig.read({"r": 2, "lora_alpha": 2, "rank_pattern": {pattern: 7}})
        by_peft = re.match(rf"(.*\.)?({pattern})$", target) is not None
        assert (terms.rank_of(target) == 7) == by_peft, target


def test_an_expression_is_compiled_once_for_all_modules(folder: Path) -> None:
    changes = {f"layers.{layer}.attn.wq_b": LoraDelta(torch.randn(2, 8), torch.randn(6, 2), 2.0) for layer in range(3)}
    write_adapter(folder, changes, {})
    with patch("seektune.lora.peft_config.matched", wraps=matched) as compiled:
        read_adapter(configured(folder, rank_pattern={"[x]": 8, "[y]": 8}, alpha_pattern={"[x-z]+": 8}))
    patterns = [call.args[1] for call in compiled.call_args_list]
    assert patterns == [rf"^(.*\.)?({each})$" for each in ("[x]", "[y]", "[x-z]+")]


@pytest.mark.parametrize(
    "pattern",
    [r"((\w|\.)+)+!", "(.*)*(.*)*(.*)*(.*)*(.*)*x#", "a?" * 40 + "a" * 40 + "!", "(a|a)" * 40 + "!", ".*" * 40],
)
def test_patterns_of_strangers_end(folder: Path, pattern: str) -> None:
    """Each of them but the last would take `re` longer than anybody waits."""
    target = "a" * 80
    terms = PeftConfig.read({"r": 2, "lora_alpha": 2, "rank_pattern": {pattern: 7}})
    assert terms.rank_of(target) == (7 if pattern.endswith("*") else 2)
    assert read_adapter(configured(folder, alpha_pattern={r"((\w|\.)+)+!": 8})).changes[NAME].scaling == 2.0


def test_a_tensor_in_both_files_is_refused(folder: Path) -> None:
    save_file(tensors(folder), folder / MTP_WEIGHTS)
    with pytest.raises(ValueError, match=f"holds {KEY}.* in both {WEIGHTS} and {MTP_WEIGHTS}"):
        read_adapter(folder)


@pytest.mark.parametrize("file", [WEIGHTS, MTP_WEIGHTS, CONFIG])
def test_a_pipe_is_not_waited_for(folder: Path, file: str) -> None:
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(ValueError, match=r"is a pipe|is not an adapter"):
        read_adapter(folder)


@pytest.mark.parametrize("module", ["q_b_proj", "kv_proj", "gate_proj", "scorer.weights_proj"])
def test_an_indexer_that_was_wrapped_but_not_trained_is_passed_over(folder: Path, module: str) -> None:
    """PEFT wraps it where it finds targets by their ends; no gradient reaches it."""
    key = f"base_model.model.model.layers.1.self_attn.compressor.indexer.{module}"
    found = tensors(folder) | {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.zeros(6, 2)}
    save_file(found, folder / WEIGHTS)
    assert list(read_adapter(folder).changes) == [NAME]
    save_file(found | {f"{key}.lora_B.weight": torch.ones(6, 2)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"changes the indexer \(layers\.1\.attn\.indexer\."):
        read_adapter(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_other_dtypes_are_rejected(folder: Path, dtype: torch.dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in tensors(folder).items()}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"as {dtype}; adapters must be"):
        read_adapter(folder)


def test_values_too_large_for_fp32_are_rejected(folder: Path) -> None:
    save_file({name: tensor.double() * 1e300 for name, tensor in tensors(folder).items()}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="not finite"):
        read_adapter(folder)


def test_unpaired_tensors_are_rejected_except_embedding_copies(folder: Path) -> None:
    found = tensors(folder)
    save_file(found | {"base_model.model.model.embed_tokens.base_layer.weight": torch.ones(4, 4)}, folder / WEIGHTS)
    assert list(read_adapter(folder)[0]) == [NAME]
    for strange in (f"{KEY}.weight", "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"):
        save_file(found | {strange: torch.ones(4)}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=f"{strange}, which belongs to no pair"):
            read_adapter(folder)
    again = {name.replace(KEY, NAME): tensor.clone() for name, tensor in found.items()}
    save_file(found | again, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"changes {NAME} a second time"):
        read_adapter(folder)


@pytest.mark.parametrize("shape", [(1,), (5,), (6, 1)])
def test_magnitudes_of_another_shape_are_rejected(folder: Path, shape: tuple[int, ...]) -> None:
    write_adapter(folder, {NAME: LoraDelta(torch.randn(2, 8), torch.randn(6, 2), 2.0, torch.ones(6))}, {})
    assert read_adapter(folder)[0][NAME].magnitude is not None
    save_file(tensors(folder) | {f"{KEY}.lora_magnitude_vector": torch.ones(shape)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"lora_magnitude_vector has shape .*, not \[6\]"):
        read_adapter(folder)


class TestExperts:
    @pytest.fixture
    def experts(self, tmp_path: Path) -> Path:
        """An adapter of gate and up of three experts."""
        both = {f"{EXPERTS}.{w}": LoraDelta(torch.randn(3, 2, 8), torch.randn(3, 6, 2), 2.0) for w in ("w1", "w3")}
        write_adapter(tmp_path / "experts", both, {})
        return tmp_path / "experts"

    def test_target_may_be_a_suffix(self, experts: Path) -> None:
        """Otherwise an adapter of only gate and up would be read as one of down."""
        configured(experts, target_parameters=["mlp.experts.gate_up_proj"])
        assert sorted(read_adapter(experts)[0]) == [f"{EXPERTS}.w1", f"{EXPERTS}.w3"]

    def test_untrained_adapter_loads(self, experts: Path) -> None:
        save_file({name: x * ("lora_A" in name) for name, x in tensors(experts).items()}, experts / WEIGHTS)
        changes = read_adapter(experts).changes
        assert sorted(changes) == [f"{EXPERTS}.w1", f"{EXPERTS}.w3"]
        assert not any(change.b.any() for change in changes.values())

    def test_inconsistent_expert_shapes_are_rejected(self, experts: Path) -> None:
        found = tensors(experts)
        low, high = sorted(found)
        for wrong, message in (
            ({low: found[low][:5].clone(), high: found[high][:, :5].clone()}, "does not have 4 rows"),
            ({low: found[low], high: found[high][:-1].clone()}, "has no two halves"),
            (
                {low.replace(".lora", ".3.lora"): found[low], high.replace(".lora", ".3.lora"): found[high]},
                "rank 12, but",
            ),
            (
                {low.replace(".lora", ".w1.lora"): found[low], high.replace(".lora", ".w1.lora"): found[high]},
                "all experts",
            ),
            (found | {low.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(12)}, "belongs to no pair"),
        ):
            save_file(wrong, experts / WEIGHTS)
            with pytest.raises(ValueError, match=message):
                read_adapter(experts)


class TestWriting:
    def test_files_have_the_same_permissions(self, folder: Path) -> None:
        assert {file.stat().st_mode for file in folder.iterdir()} == {(folder / CONFIG).stat().st_mode}

    def test_only_an_adapter_is_replaced(self, tmp_path: Path) -> None:
        other, changes = tmp_path / "work", {NAME: LoraDelta(torch.randn(2, 8), torch.randn(6, 2), 2.0)}
        other.mkdir()
        (other / "thesis.tex").write_text("years")
        for place in (other, other / "thesis.tex"):
            with pytest.raises(ValueError, match="exists and is not an adapter"):
                write_adapter(place, changes, {})
        assert (other / "thesis.tex").read_text() == "years"
        (other / "thesis.tex").unlink()
        write_adapter(other, changes, {})
        write_adapter(other, changes, {})
        assert list(read_adapter(other)[0]) == [NAME]

    @pytest.mark.parametrize("limit", [10, 300])
    def test_full_disk_keeps_the_older_adapter(self, folder: Path, limit: int) -> None:
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match=f"File too large.*{WEIGHTS}"):
                write_adapter(folder, {NAME: LoraDelta(torch.randn(2, 8), torch.randn(6, 2), 2.0)}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        assert list(folder.parent.iterdir()) == [folder]
