"""transformers loads our exports without our code: names, values and logits.

On a CPU, transformers decodes FP4 and FP8 weights into the requested dtype while loading. In such a checkpoint it keeps
BF16 tensors as BF16 whatever dtype is requested, so a forward pass in fp32 needs `.float()` afterwards. FP4 and FP8
values are representable in bf16, so every weight is exact either way.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seektune.checkpoint.convert import convert
from seektune.model.causal_lm import DeepseekV4ForCausalLM

REPEATED_TOKEN = 7
"""This token's row of the hash table lists an expert twice, which transformers counts twice."""
LOW_BIT = ("released", "fp8", "base")


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ours(parity_folder: Path) -> DeepseekV4ForCausalLM:
    return DeepseekV4ForCausalLM.from_pretrained(parity_folder)


@pytest.fixture(scope="module")
def exported(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoint in every format."""
    folder = tmp_path_factory.mktemp("exported")
    return {to: convert(parity_folder, folder / to, to).folder for to in ("bf16", "fp32", *LOW_BIT)}


@pytest.fixture
def ids(ours: DeepseekV4ForCausalLM) -> Tensor:
    ids = torch.randint(ours.config.vocab_size, (2, 200))
    return torch.where(ids == REPEATED_TOKEN, REPEATED_TOKEN + 1, ids)


def loaded(transformers: Any, folder: Path, **options: Any) -> Any:
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, **options
    )
    assert not any(found.values()), found
    return theirs.train(False)


def agree(ours: DeepseekV4ForCausalLM, theirs: Any, ids: Tensor) -> None:
    with torch.no_grad():
        expected, found = ours(ids).logits, theirs(ids, use_cache=False).logits
    assert expected.std() > 0.5
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("to", ["bf16", "fp32"])
def test_plain_exports_load_with_our_logits(ours, exported, transformers, ids, to: str):
    agree(ours, loaded(transformers, exported[to], dtype=torch.float32), ids)


@pytest.mark.parametrize("to", LOW_BIT)
@pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.bfloat16], ids=str)
@pytest.mark.slow
def test_low_bit_exports_load_on_a_cpu_with_our_logits(ours, exported, transformers, ids, to: str, dtype):
    theirs = loaded(transformers, exported[to], dtype=dtype)
    decoded = theirs.model.layers[1].self_attn.q_a_proj.weight
    assert decoded.dtype == (torch.bfloat16 if dtype == "auto" else dtype), "decoded while loading"
    assert theirs.model.norm.weight.dtype == torch.bfloat16, "as on disk"
    assert torch.equal(decoded.float(), ours.layers[1].attn.wq_a.weight)
    experts = theirs.model.layers[2].mlp.experts.down_proj
    assert torch.equal(experts.float(), ours.layers[2].ffn.experts.w2)
    agree(ours, theirs.float(), ids)


@pytest.mark.slow
def test_explicit_dequantize_loads_with_our_logits(ours, exported, transformers, ids):
    """`dequantize=True` decodes on any machine; a CPU does so by default."""
    decoding = transformers.FineGrainedFP8Config(dequantize=True)
    theirs = loaded(transformers, exported["released"], dtype=torch.bfloat16, quantization_config=decoding)
    agree(ours, theirs.float(), ids)
