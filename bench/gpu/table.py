"""All parts, the most important first."""

from functools import partial

from bench.gpu.adapters import lora_slice
from bench.gpu.ceilings import ceilings, products
from bench.gpu.decode import decode_slice
from bench.gpu.deepseek import deepseek_kernels
from bench.gpu.kernel_times import kernel_times, packed_times
from bench.gpu.layers import layers, profile
from bench.gpu.part import Part
from bench.gpu.runs import decode_run, dispatch_run, lora_run, train_run
from bench.gpu.twins import packed_twins, released_twins, twins

PARTS = (
    Part("ceilings", 8, ceilings),
    Part("kernels equal their definitions", 60, twins),
    Part("attention equals its definition at released width", 25, released_twins),
    Part("packed products and the index choice equal their definitions", 16, packed_twins),
    Part("run: train and resume", 20, train_run),
    Part("run: LoRA on packed weights", 15, lora_run),
    Part("run: decode", 10, decode_run),
    Part("run: expert dispatch over NCCL", 10, dispatch_run),
    Part("layers, frozen experts, 4096", 25, partial(layers, packed=False, length=4096)),
    Part("LoRA slice", 25, lora_slice),
    Part("decode slice", 20, decode_slice),
    Part("layers, packed, 4096", 20, partial(layers, packed=True, length=4096)),
    Part("products", 6, products),
    Part("kernels, 4096", 15, partial(kernel_times, length=4096)),
    Part("packed products, 4096", 14, partial(packed_times, length=4096)),
    Part("layers, FP8 inputs, 4096", 10, partial(layers, packed=True, length=4096, rounding="serving")),
    Part("DeepSeek's kernels", 5, deepseek_kernels),
    Part("layers, frozen experts, 16384", 20, partial(layers, packed=False, length=16384)),
    Part("kernels, 16384", 15, partial(kernel_times, length=16384)),
    Part("layers, packed, 16384", 20, partial(layers, packed=True, length=16384)),
    Part("packed products, 16384", 10, partial(packed_times, length=16384)),
    Part("profile of a packed CSA layer, 4096", 15, partial(profile, packed=True)),
    Part("profile of a CSA layer, 4096", 15, partial(profile, packed=False)),
)
"""Seconds are estimates on an H200: none of these parts was timed there as a whole."""
