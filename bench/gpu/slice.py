"""Blocks and slices of V4-Flash with random weights, made on the device: bf16, or FP4 and FP8 as released."""

import torch
from torch import Tensor, nn

from bench.gpu.clock import BF16
from bench.gpu.part import Bench
from seektune.checkpoint.formats import FORMATS
from seektune.model.block import Block
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import CSA, HCA, SLIDING, DeepseekV4Config
from seektune.model.numerics import numerics
from seektune.model.quantized import quantize_modules

NAMES = {SLIDING: "sliding", CSA: "CSA", HCA: "HCA"}
"""Names of the kinds of layers in tables."""
_FP8_BELOW_2 = 0xBF
"""Bits of E4M3 codes whose exponents are at most 7."""
_SCALE = 120
"""E8M0 code of 2^-7, so that values are small."""


def slice_config(bench: Bench) -> DeepseekV4Config:
    """Three layers of the released width, one of each kind; the first routes by a hash."""
    ratios = [SLIDING, CSA, HCA]
    return bench.config.replace(
        num_hidden_layers=3, num_hash_layers=1, num_nextn_predict_layers=0, compress_ratios=ratios
    )


def packed_slice(bench: Bench) -> DeepseekV4ForCausalLM:
    """A model of `slice_config` whose weights stay FP4 and FP8; 12.9 GB at the released width."""
    model = DeepseekV4ForCausalLM(slice_config(bench), "meta", BF16)
    quantize_modules(model, FORMATS["released"].kind)
    model.to_empty(device=bench.device)
    fill(model, model.config)
    return model


def layer(bench: Bench, ratio: int, packed: bool, rounding: str = "plain") -> Block:
    """One layer, whose experts are frozen; with `packed` they and attention are FP4 and FP8, and all is frozen."""
    config = bench.config
    number = next(n for n in range(config.num_hidden_layers) if config.ratio(n) == ratio)
    # past the hash-routed ones, which need token ids
    config = config.replace(num_hash_layers=0)
    block = Block(config, number, numerics(rounding, config.index_head_dim), torch.device("meta"), BF16)
    root = nn.Module()
    root.layers = nn.ModuleDict({str(number): block})
    if packed:
        quantize_modules(root, FORMATS["released"].kind)
    block.to_empty(device=bench.device)
    fill(block, config)
    frozen = block if packed else block.ffn.experts
    frozen.requires_grad_(False)
    return block


@torch.no_grad()
def fill(model: nn.Module, config: DeepseekV4Config) -> None:
    """Random weights of about 0.02, norm weights of one, experts of hash tables, and any bytes of FP4 and FP8."""
    for name, tensor in model.state_dict().items():
        _fill(name, tensor, config)


def _fill(name: str, tensor: Tensor, config: DeepseekV4Config) -> None:
    if name.endswith("tid2eid"):
        tensor.copy_(torch.rand(len(tensor), config.n_routed_experts, device=tensor.device).topk(tensor.shape[1])[1])
    elif name.endswith(".scale") and tensor.dtype == torch.uint8:
        tensor.fill_(_SCALE)
    elif not tensor.is_floating_point():
        words = tensor.view(torch.uint8)
        words.random_(0, 256)
        if tensor.dtype == torch.uint8:
            words &= _FP8_BELOW_2
    elif "norm" in name:
        nn.init.ones_(tensor)
    elif tensor.dim() == 1:
        nn.init.zeros_(tensor)
    else:
        nn.init.normal_(tensor, std=0.02)
