"""PEFT loads our adapters into the transformers model with our logits, and we load PEFT's."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.checkpoint.transformers_names import transformers_name
from seektune.lora.files import load_adapter, save_adapter, unload_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.merge import merge
from seektune.lora.state import adapter_state
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM

from .test_transformers import SIZES

TARGETS = {
    "attention": ("attn",),
    "compressor": ("attn.compressor",),
    "shared expert": ("ffn.shared_experts",),
    "routed experts": ("ffn.experts",),
    "gate and up only": ("ffn.experts.w1", "ffn.experts.w3"),
    "up only": ("ffn.experts.w3",),
    "down only": ("ffn.experts.w2",),
    "embedding and head": ("embed", "head"),
    "one layer": ("layers.1.attn.wq_b", "layers.2.ffn.experts"),
    "everything": ("attn", "attn.compressor", "ffn.shared_experts", "ffn.experts", "embed", "head", "mtp.0"),
}


@pytest.fixture(scope="module")
def base(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("base") / "model"
    toy_model(torch.float32, **SIZES).save_pretrained(folder, format="fp32")
    return folder


def with_adapter(base: Path, targets: tuple[str, ...], **shape: Any) -> DeepseekV4ForCausalLM:
    model = DeepseekV4ForCausalLM.from_pretrained(base)
    adapt(model, matching(model, targets), AdapterShape(**({"rank": 3, "alpha": 5.0} | shape)))
    init_adapters(model, seed=0)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if name.endswith(".B"):
                tensor.normal_(0.0, 0.1)
            elif name.endswith(".magnitude"):
                tensor.mul_(torch.rand(tensor.shape) + 0.5)
    return model


def with_peft(base: Path, adapter: Path) -> Any:
    import peft
    import transformers

    model = transformers.DeepseekV4ForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    with warnings.catch_warnings():
        # PEFT warns that patterns of parameters match no module, but uses them
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(model, adapter)


def ids() -> torch.Tensor:
    return torch.randint(64, (2, 150), generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "targets",
    [
        pytest.param(targets, id=name, marks=[] if name in ("attention", "everything") else pytest.mark.slow)
        for name, targets in TARGETS.items()
    ],
)
@pytest.mark.parametrize("shape", [{}, {"rslora": True, "shared_a": True}], ids=["plain", "rslora, shared A"])
@torch.no_grad()
def test_peft_loads_our_adapter_with_our_logits(
    base: Path, tmp_path: Path, targets: tuple[str, ...], shape: dict[str, Any]
) -> None:
    ours = with_adapter(base, targets, **shape)
    save_adapter(ours, tmp_path / "adapter", str(base))
    theirs = with_peft(base, tmp_path / "adapter")
    expected, plain = ours(ids()).logits, DeepseekV4ForCausalLM.from_pretrained(base)(ids()).logits
    assert (expected - plain).abs().max() > 1e-2
    assert (theirs(ids(), use_cache=False).logits - expected).abs().max() <= 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_peft_loads_our_dora_adapter_with_our_logits(base: Path, tmp_path: Path) -> None:
    targets = ("attn.wq_a", "attn.wq_b", "attn.wo_b", "ffn.shared_experts")
    ours = with_adapter(base, targets, dora=True)
    save_adapter(ours, tmp_path / "adapter", str(base))
    theirs = with_peft(base, tmp_path / "adapter")
    assert (theirs(ids(), use_cache=False).logits - ours(ids()).logits).abs().max() <= 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_peft_merge_of_our_adapter_has_our_logits(base: Path, tmp_path: Path) -> None:
    ours = with_adapter(base, TARGETS["everything"])
    save_adapter(ours, tmp_path / "adapter", str(base))
    merged = with_peft(base, tmp_path / "adapter").merge_and_unload()
    assert (merged(ids(), use_cache=False).logits - ours(ids()).logits).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "patterns"),
    [
        (["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], {}),
        pytest.param(
            ["experts.gate_up_proj"],
            {
                "rank_pattern": {"1.*q_a_proj": 2, "experts.gate_up_proj": 5},
                "alpha_pattern": {"o_b_proj": 1, "up_proj": 9},
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["two parameters", "one, and patterns"],
)
@torch.no_grad()
def test_adapter_made_by_peft_loads(
    base: Path, tmp_path: Path, parameters: list[str], patterns: dict[str, Any]
) -> None:
    """With target names by suffix, one fused matrix for gate and up, and rank patterns."""
    import peft
    import transformers

    model = transformers.DeepseekV4ForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_a_proj", "o_b_proj"],
        target_parameters=parameters,
        init_lora_weights=False,
        **patterns,
    )
    theirs = peft.get_peft_model(model, config)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = DeepseekV4ForCausalLM.from_pretrained(base)
    load_adapter(ours, tmp_path / "adapter")
    assert (theirs(ids(), use_cache=False).logits - ours(ids()).logits).abs().max() <= 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_save_load_unload_round_trip(base: Path, tmp_path: Path) -> None:
    ours = with_adapter(base, TARGETS["everything"])
    save_adapter(ours, tmp_path / "adapter")
    model = DeepseekV4ForCausalLM.from_pretrained(base)
    plain = model(ids(), mtp=True)
    changed = load_adapter(model, tmp_path / "adapter")
    assert any(name.startswith("mtp.0.") for name in changed)
    found, expected = model(ids(), mtp=True), ours(ids(), mtp=True)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.mtp_logits, expected.mtp_logits)
    unload_adapter(model, "loaded")
    after = model(ids(), mtp=True)
    assert torch.equal(after.logits, plain.logits)
    assert torch.equal(after.mtp_logits, plain.mtp_logits)
    model.save_pretrained(tmp_path / "again")


@pytest.mark.slow
@torch.no_grad()
def test_adapters_stack_with_weights(base: Path, tmp_path: Path) -> None:
    """Adapters of the head are linear in the logits, so their changes add up."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        save_adapter(with_adapter(base, ("head",)), folder)
    model = DeepseekV4ForCausalLM.from_pretrained(base)
    plain = model(ids()).logits
    alone = []
    for folder in folders:
        load_adapter(model, folder)
        alone.append(model(ids()).logits - plain)
        unload_adapter(model, "loaded")
    load_adapter(model, folders[0], weight=0.5, adapter="a")
    load_adapter(model, folders[1], weight=-2.0, adapter="b")
    torch.testing.assert_close(model(ids()).logits, plain + 0.5 * alone[0] - 2 * alone[1], rtol=0, atol=1e-4)
    unload_adapter(model, "a")
    torch.testing.assert_close(model(ids()).logits, plain - 2 * alone[1], rtol=0, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_adapter_of_the_usual_targets_loads_though_peft_wraps_the_indexer(base: Path, tmp_path: Path) -> None:
    """Targets by their ends also match the indexer's layers, which no gradient reaches: their B stays zero."""
    import peft
    import transformers

    model = transformers.DeepseekV4ForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    theirs = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_a_proj", "q_b_proj", "kv_proj", "gate_proj", "o_b_proj"])
    )
    wrapped = [name for name, _ in theirs.named_modules() if "indexer" in name and name.endswith(".lora_B")]
    assert len(wrapped) == 6
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name and "indexer" not in name:
            parameter.normal_(0.0, 0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = DeepseekV4ForCausalLM.from_pretrained(base)
    changed = load_adapter(ours, tmp_path / "adapter")
    assert not any("indexer" in name for name in changed)
    merge(base, tmp_path / "adapter", tmp_path / "merged", "fp32")
    merged = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids()).logits, ours(ids()).logits, rtol=0, atol=1e-4)
    assert (theirs(ids(), use_cache=False).logits - ours(ids()).logits).abs().max() <= 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_names_of_linear_layers_are_those_of_transformers(base: Path) -> None:
    import transformers

    theirs = transformers.DeepseekV4ForCausalLM.from_pretrained(base, dtype=torch.float32)
    named = dict(theirs.named_modules())
    ours = DeepseekV4ForCausalLM.from_pretrained(base)
    for name, module in ours.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.startswith("mtp."):
            assert named[transformers_name(name)].weight.shape == module.weight.shape, name
