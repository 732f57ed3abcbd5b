"""Adapters that others made: what they hold beside low-rank changes, what they lack, and names of transformers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.transformers_names import released_name, transformers_name
from seektune.lora.files import load_adapter, save_adapter
from seektune.lora.format import CONFIG, WEIGHTS, read_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.merge import merge
from seektune.lora.state import adapter_state
from seektune.lora.targets import adaptable, matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.lora import load_adapter as load_for_training
from seektune.parallel.model import ParallelModel

TARGETS = ("attn", "ffn.experts", "ffn.shared_experts", "mtp.0")
HEAD = "base_model.model.lm_head.weight"
EMBED = "base_model.model.model.embed_tokens.base_layer.weight"


@pytest.fixture(scope="module")
def base(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    toy_model(torch.float32).save_pretrained(folder, format="bf16")
    return folder


def adapted(base: Path) -> DeepseekV4ForCausalLM:
    model = DeepseekV4ForCausalLM.from_pretrained(base)
    adapt(model, matching(model, TARGETS), AdapterShape(rank=2, alpha=4.0))
    init_adapters(model, seed=0)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if name.endswith(".B"):
                tensor.normal_(0.0, 0.1)
    return model


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    save_adapter(adapted(base), tmp_path / "adapter", str(base))
    return tmp_path / "adapter"


def changed(adapter: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    save_file(change({name: x.clone() for name, x in load_file(adapter / WEIGHTS).items()}), adapter / WEIGHTS)
    return adapter


def every_use(base: Path, adapter: Path, out: Path) -> list[Callable[[], object]]:
    """Loading onto a model, going on with its training, and merging."""
    return [
        lambda: load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter),
        lambda: load_for_training(ParallelModel.alone(adapted(base)), adapter),
        lambda: merge(base, adapter, out, "fp32"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("key", "weight"), [(HEAD, "head"), (EMBED, "embed")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_of_the_base_is_ignored(base: Path, adapter: Path, key: str, weight: str, dtype: torch.dtype) -> None:
    model = DeepseekV4ForCausalLM.from_pretrained(base)
    copy = model.get_parameter(f"{weight}.weight").detach().to(dtype)
    changed(adapter, lambda found: found | {key: copy})
    for use in every_use(base, adapter, adapter.parent / "merged"):
        use()


@pytest.mark.slow
@pytest.mark.parametrize("key", [HEAD, EMBED])
def test_another_head_or_embedding_is_refused_by_name(base: Path, adapter: Path, key: str) -> None:
    weight = DeepseekV4ForCausalLM.from_pretrained(base).head.weight.detach()
    for copy, said in ((weight * 1.01, "with other values than"), (torch.ones(66, 32), "resized")):
        changed(adapter, lambda found, copy=copy: found | {key: copy})
        for use in every_use(base, adapter, adapter.parent / "merged"):
            with pytest.raises(ValueError, match=f"holds {key} .*{said}"):
                use()
    assert not (adapter.parent / "merged").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "model.layers.2.self_attn.q_a_proj",
        "model.layers.1.self_attn.o_a_proj",
        "model.layers.0.mlp.shared_experts.up_proj",
        "model.layers.3.mlp.experts.base_layer",
    ],
)
def test_an_adapter_without_a_part_of_its_targets_is_refused(base: Path, adapter: Path, module: str) -> None:
    changed(adapter, lambda found: {name: x for name, x in found.items() if f"{module}.lora" not in name})
    for use in every_use(base, adapter, adapter.parent / "merged"):
        with pytest.raises(ValueError, match=r"is incomplete: its config names|in only one of both"):
            use()


@pytest.mark.slow
def test_targets_by_their_ends_are_expected_in_every_layer(base: Path, adapter: Path) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    config["target_modules"] = sorted({".".join(name.split(".")[-2:]) for name in config["target_modules"]})
    (adapter / CONFIG).write_text(json.dumps(config))
    load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)
    changed(adapter, lambda found: {name: x for name, x in found.items() if "layers.2.self_attn.kv_proj" not in name})
    with pytest.raises(ValueError, match=r"incomplete: its config names model\.layers\.2\.self_attn\.kv_proj"):
        load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)
    pattern = r".*self_attn\.(q_a_proj|kv_proj)"
    for keys in ({"target_modules": pattern}, {"layers_to_transform": [1, 2]}, {"exclude_modules": ["q_a_proj"]}):
        (adapter / CONFIG).write_text(json.dumps({**config, **keys}))
        with pytest.raises(ValueError, match=r"incomplete: its config names model\.layers\.2\.self_attn\.kv_proj"):
            load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)
    for keys in (
        {"layers_to_transform": [0, 1, 3]},
        {"exclude_modules": ["layers.2.self_attn.kv_proj"]},
        {"target_modules": r"(?!.*kv).*self_attn\.kv_proj"},
    ):
        (adapter / CONFIG).write_text(json.dumps({**config, **keys}))
        load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)


@pytest.mark.slow
def test_an_empty_file_is_refused(base: Path, adapter: Path) -> None:
    changed(adapter, lambda found: {})
    for use in every_use(base, adapter, adapter.parent / "merged"):
        with pytest.raises(ValueError, match=r"is incomplete|in only one of both"):
            use()
    (adapter / WEIGHTS).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{WEIGHTS} is damaged or truncated"):
        load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)


@pytest.mark.slow
def test_a_change_that_is_nothing_may_be_of_a_module_that_is_not_here(base: Path, adapter: Path) -> None:
    key = "base_model.model.model.layers.9.self_attn.q_a_proj"
    nothing = {f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.zeros(16, 2)}
    changed(adapter, lambda found: found | nothing)
    load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)
    merge(base, adapter, adapter.parent / "merged", "fp32")
    changed(adapter, lambda found: found | {f"{key}.lora_B.weight": torch.ones(16, 2)})
    with pytest.raises(ValueError, match=r"changes layers\.9\.attn\.wq_a, which this model does not have"):
        load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)


def test_names_of_transformers_are_those_of_the_release_and_back(base: Path) -> None:
    model = DeepseekV4ForCausalLM.from_pretrained(base)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert any(".indexer.compressor.wkv" in name for name in linear)
    names = {*linear, *(name for name in adaptable(model) if ".experts." not in name)}
    theirs = {name: transformers_name(name) for name in names}
    assert {released_name(each): each for each in theirs.values()} == theirs
    assert theirs["layers.1.attn.indexer.wq_b"] == "model.layers.1.self_attn.compressor.indexer.q_b_proj"


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.model.",
        "base_model.model.",
        "model.",
        "",
        "module.base_model.model.model.",
        "base_model.model.model.language_model.",
    ],
)
def test_modules_are_known_by_the_end_of_their_names(base: Path, adapter: Path, prefix: str) -> None:
    """A trainer without PEFT's wrapper, without the head's model around, or with wrappers of its own."""
    expected = load_file(adapter / WEIGHTS)
    config = json.loads((adapter / CONFIG).read_text())
    assert config["rank_pattern"], "of the experts"
    ends = {name: name.removeprefix("base_model.model.model.") for name in expected}
    assert all(end.startswith("layers.") for end in ends.values())
    plain = DeepseekV4ForCausalLM.from_pretrained(base)
    load_adapter(plain, adapter)
    changed(adapter, lambda found: {prefix + ends[name]: x for name, x in found.items()})
    renamed = {"rank_pattern": {each.removeprefix("model."): rank for each, rank in config["rank_pattern"].items()}}
    renamed["alpha_pattern"] = {each.removeprefix("model."): a for each, a in config["alpha_pattern"].items()}
    (adapter / CONFIG).write_text(json.dumps(config | renamed))
    model = DeepseekV4ForCausalLM.from_pretrained(base)
    load_adapter(model, adapter)
    ids = torch.randint(64, (1, 40))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["lm_head.weight", "model.embed_tokens.weight", "base_model.model.embed_tokens.weight"])
def test_a_copy_of_the_base_is_known_by_the_end_of_its_name(base: Path, adapter: Path, key: str) -> None:
    weight = DeepseekV4ForCausalLM.from_pretrained(base).get_parameter(
        "head.weight" if "head" in key else "embed.weight"
    )
    changed(adapter, lambda found: found | {key: weight.detach()})
    load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)
    changed(adapter, lambda found: found | {key: weight.detach() + 1})
    with pytest.raises(ValueError, match=rf"holds {key} with other values"):
        load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spelled", "prefix"),
    [
        ({"w1": "w1", "w2": "w2", "w3": "w3"}, "base_model.model."),
        ({"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}, "base_model.model.model."),
    ],
    ids=["release", "transformers"],
)
def test_a_pair_for_each_expert_is_stacked(base: Path, adapter: Path, spelled: dict[str, str], prefix: str) -> None:
    plain = DeepseekV4ForCausalLM.from_pretrained(base)
    load_adapter(plain, adapter)
    config = json.loads((adapter / CONFIG).read_text())
    changes = read_adapter(adapter).changes
    rows = {name: x for name, x in load_file(adapter / WEIGHTS).items() if ".experts" not in name}
    for name, change in changes.items():
        stem, _, matrix = name.rpartition(".")
        if not stem.endswith(".experts") or name.startswith("mtp."):
            continue
        for expert in range(len(change.b)):
            key = f"{prefix}{stem.replace('.ffn.', '.mlp.')}.{expert}.{spelled[matrix]}"
            rows |= {f"{key}.lora_A.weight": change.a[expert].clone(), f"{key}.lora_B.weight": change.b[expert].clone()}
    config |= {"target_parameters": None, "rank_pattern": {}, "alpha_pattern": {}}
    (adapter / CONFIG).write_text(json.dumps(config))
    changed(adapter, lambda found: rows)
    (adapter / "adapter_mtp.safetensors").unlink()
    model = DeepseekV4ForCausalLM.from_pretrained(base)
    load_adapter(model, adapter)
    ids = torch.randint(64, (1, 40))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)
    gone = next(name for name in rows if ".experts.3." in name).rpartition(".lora_")[0]
    changed(adapter, lambda found: {name: x for name, x in found.items() if not name.startswith(gone)})
    with pytest.raises(ValueError, match=r"of 7 experts, but not of each one up to 7"):
        load_adapter(DeepseekV4ForCausalLM.from_pretrained(base), adapter)
