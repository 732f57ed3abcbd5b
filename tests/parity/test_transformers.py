"""Agreement with transformers' DeepseekV4ForCausalLM, a second implementation, on weights loaded from our export.

Both run in fp32, where transformers' casts to the model dtype (mixing weights, router logits, compressor products,
cosines) change nothing. It ignores the MTP block and has no simulated quantization.

Logits are only comparable if both choose the same experts and entries. A near-tie could be resolved differently, but is
not with these seeds. Exact ties of index scores are possible, as a sum of relus is 0 if all heads are negative; with 16
index heads they are rare at the edge of the top k. The experts in a row of `tid2eid` are distinct, because a duplicate
counts once in the official code (and here) but twice in transformers.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seektune.kernels import Chosen, Prefix
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.indexer import Indexer

LENGTH = 300
SEED = 1
"""Of the ids. With 0 two index scores at the edge of the top k differ by 6e-7, and transformers picks the lower one."""

CASES: dict[str, dict[str, Any]] = {
    "head 48, rope 16, top-k active": {"head_dim": 48, "qk_rope_head_dim": 16, "index_topk": 8},
    "head 64, rope 32, every entry chosen": {"head_dim": 64, "qk_rope_head_dim": 32, "index_topk": 128},
    "head 128, rope 64, window 128, 2 hash layers": {
        "head_dim": 128,
        "qk_rope_head_dim": 64,
        "index_head_dim": 128,
        "sliding_window": 128,
        "num_hash_layers": 2,
        "index_topk": 16,
    },
    "first layers HCA as in Pro, other eps and factors": {
        "compress_ratios": [128, 128, 4, 0],
        "num_nextn_predict_layers": 0,
        "num_hash_layers": 0,
        "o_groups": 4,
        "routed_scaling_factor": 2.5,
        "hc_sinkhorn_iters": 3,
        "hc_eps": 1e-3,
        "rms_norm_eps": 1e-2,
        "rope_theta": 500.0,
        "compress_rope_theta": 9000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 8,
            "original_max_position_embeddings": 128,
            "beta_fast": 16,
            "beta_slow": 2,
        },
    },
}

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "q_lora_rank": 32,
    "o_lora_rank": 16,
    "moe_intermediate_size": 32,
    "index_n_heads": 16,
    "index_head_dim": 32,
}

FAMILIES = {
    "embedding": ("embed.weight",),
    "attention": ("attn.wq_a", "attn.wq_b", "attn.wkv", "attn.wo_a", "attn.wo_b", "q_norm", "kv_norm", "attn_sink"),
    "compressor": ("attn.compressor.",),
    "routed experts": (".experts.w",),
    "shared expert": ("shared_experts",),
    "gate": ("gate.weight",),
    "mHC": ("hc_",),
    "norms": ("attn_norm", "ffn_norm"),
    "head": ("head.weight",),
}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=CASES)
def pair(
    request: pytest.FixtureRequest,
    toy_model: Callable[..., DeepseekV4ForCausalLM],
    transformers: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[DeepseekV4ForCausalLM, Any]:
    """Our model and transformers' with the same weights."""
    ours = toy_model(torch.float32, **(SIZES | CASES[request.param]))
    folder = tmp_path_factory.mktemp("export") / "model"
    ours.save_pretrained(folder, format="fp32")
    theirs, found = transformers.DeepseekV4ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(found.values()), found
    return ours, theirs.train(False)


@pytest.fixture
def ids(pair: Any) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(pair[0].config.vocab_size, (2, LENGTH), generator=generator)


@pytest.fixture
def choices(pair: Any) -> Iterator[list[Prefix | Chosen]]:
    """Records what the indexers of our model return."""
    seen: list[Prefix | Chosen] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: seen.append(out))
        for module in pair[0].modules()
        if isinstance(module, Indexer)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.slow
@torch.no_grad()
def test_logits_match_transformers(pair, ids):
    ours, theirs = pair
    found, reference = ours(ids).logits, theirs(ids, use_cache=False).logits
    assert reference.std() > 0.5
    assert (found - reference).abs().max() <= 1e-4


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 127, 128, 129])
@torch.no_grad()
def test_logits_of_short_rows_match_transformers(pair, ids, length):
    ours, theirs = pair
    part = ids[:, :length]
    assert (ours(part).logits - theirs(part, use_cache=False).logits).abs().max() <= 1e-4


@torch.no_grad()
def test_cases_use_top_k_as_configured(pair, ids, choices):
    ours, _ = pair
    ours(ids)
    assert choices
    active = ours.config.index_topk < LENGTH // 4
    assert all(isinstance(choice, Chosen) == active for choice in choices)


@pytest.mark.slow
def test_gradients_match_transformers(pair, ids):
    ours, theirs = copy.deepcopy(pair[0]), pair[1]
    theirs.zero_grad()
    labels = torch.where(torch.rand(ids.shape) < 0.2, -100, ids)
    loss = ours(ids, labels=labels).loss
    reference = theirs(ids, labels=labels, use_cache=False).loss
    assert abs(loss - reference) <= 1e-5
    loss.backward()
    reference.backward()
    compared = dict.fromkeys(FAMILIES, 0)
    parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name.startswith("mtp.") or "indexer" in name:
            continue
        gradient = parameter.grad
        expected = gradient_of(name, parameters)
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0)
        assert cosine >= 0.9999, name
        assert gradient.norm() == pytest.approx(expected.norm().item(), rel=1e-3), name
        for family in (key for key, parts in FAMILIES.items() if any(part in name for part in parts)):
            compared[family] += 1
    assert all(compared.values()), compared


def gradient_of(name: str, theirs: dict[str, torch.nn.Parameter]) -> Tensor:
    """transformers' gradient of our parameter, found by the renaming of its conversion."""
    if name == "head.weight":
        return theirs["lm_head.weight"].grad
    for ours, their in RENAMED:
        name = name.replace(ours, their)
    if ".experts.w" in name:
        stem, matrix = name.rsplit(".", 1)
        if matrix == "w2":
            return theirs[f"model.{stem}.down_proj"].grad
        return theirs[f"model.{stem}.gate_up_proj"].grad.chunk(2, dim=1)[matrix == "w3"]
    return theirs[f"model.{name}"].grad


RENAMED = (
    ("embed.", "embed_tokens."),
    ("hc_attn.", "attn_hc."),
    ("hc_ffn.", "ffn_hc."),
    ("hc_head.", "hc_head.hc_"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    (".attn.", ".self_attn."),
    (".ffn.", ".mlp."),
    ("attn_sink", "sinks"),
    ("wq_a", "q_a_proj"),
    ("wq_b", "q_b_proj"),
    ("q_norm", "q_a_norm"),
    ("wo_a", "o_a_proj"),
    ("wo_b", "o_b_proj"),
    ("wkv", "kv_proj"),
    ("wgate", "gate_proj"),
    ("compressor.norm", "compressor.kv_norm"),
    ("compressor.ape", "compressor.position_bias"),
    ("shared_experts.w1", "shared_experts.gate_proj"),
    ("shared_experts.w2", "shared_experts.down_proj"),
    ("shared_experts.w3", "shared_experts.up_proj"),
)


@torch.no_grad()
def test_transformers_loads_a_bf16_export(pair, transformers, tmp_path: Path):
    ours, _ = pair
    ours.save_pretrained(tmp_path / "model")
    theirs, found = transformers.DeepseekV4ForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(found.values()), found
    assert torch.equal(theirs.lm_head.weight, ours.head.weight.bfloat16())
