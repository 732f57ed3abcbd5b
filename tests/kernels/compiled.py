"""Compile the large kernels with released widths for a GPU that need not be present; print their shared memory.

`python -m tests.kernels.compiled CAPABILITY HEADS KEYS` prints a line of name and bytes for each kernel.
"""

import re
import subprocess
import sys
from tempfile import NamedTemporaryFile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seektune.kernels.triton import (
    fp8_grouped_mm,
    hyper_route,
    hyper_route_gradients,
    hyper_route_tiles,
    index_scores,
    lowbit_grouped_mm,
    sparse_attention,
    sparse_attention_gradients,
)
from seektune.kernels.triton.sparse_attention_gradients import KEYS

BF16, FP32, INT64 = "*bf16", "*fp32", "*i64"
TYPES = (
    dict.fromkeys(("q", "keys", "entries", "out", "grad", "dq", "weights"), BF16)
    | dict.fromkeys(("sink", "total", "along", "dsink", "parts", "shares", "scores"), FP32)
    | dict.fromkeys(("reach", "index", "first", "count", "low", "high", "chosen", "order", "starts"), INT64)
    | {"scale": "fp32", "x": BF16, "table": INT64}
)
"""Types of arguments; all others are int32."""
STREAM_TYPES = (
    dict.fromkeys(("streams", "dy", "y", "dstreams"), BF16)
    | dict.fromkeys(("fn", "base", "scale", "scales", "u", "inverse", "dlogits", "du"), FP32)
    | {"eps": "fp32", "norm_eps": "fp32"}
)
FP8_TYPES = {"x": "*u8", "factors": FP32}
ENCODE_TYPES = {"codes": "*u8", "scales": FP32} | dict.fromkeys(("largest", "least_peak", "smallest"), "fp32")
OWN_TYPES = {
    "_choose": {"entries": "i32"},
    "_read": STREAM_TYPES,
    "_read_backward": STREAM_TYPES,
    "_multiply_fp8": FP8_TYPES,
    "_encode": ENCODE_TYPES,
}
"""Types of arguments by kernel, where they differ."""
PRODUCT_MULTIPLES = ("x", "table", "out", "outputs", "inputs")
FP8_MULTIPLES = (*PRODUCT_MULTIPLES, "factors")
INDEX_MULTIPLES = ("q", "keys", "weights", "chosen", "scores", "width")
STREAM_MULTIPLES = ("streams", "fn", "u", "width")
"""Addresses and sizes that are multiples of 16 at released widths, as Triton notices at a call."""


def shared(kernel: triton.JITFunction, capability: int, sizes: dict[str, int], warps: int, stages: int) -> int:
    """Shared memory of a program in bytes, compiled down to ptxas."""
    return int(compiled(kernel, capability, sizes, warps, stages).metadata.shared)


def compiled(
    kernel: triton.JITFunction,
    capability: int,
    sizes: dict[str, int],
    warps: int,
    stages: int,
    multiples: tuple[str, ...] = (),
) -> triton.compiler.CompiledKernel:
    """A kernel for that GPU; `multiples` are arguments that are multiples of 16."""
    own = TYPES | OWN_TYPES.get(kernel.__name__, {})
    types = {name: "constexpr" if name in sizes else own.get(name, "i32") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    options = {"num_warps": warps, "num_stages": stages}
    built = triton.compile(
        ASTSource(kernel, types, constants, aligned), target=GPUTarget("cuda", capability, 32), options=options
    )
    assert built.asm["cubin"]
    return built


def spilled(built: triton.compiler.CompiledKernel) -> int:
    """Bytes of a thread's memory that do not fit into its registers."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", told)))


def lowbit_products(capability: int) -> None:
    """Forward of FP4 and the input's gradient of FP8 for many pairs, both with the largest tiles."""
    rows, columns, depth, warps, stages = lowbit_grouped_mm.TILES[-1]
    sizes = {"ALIGN": 16, "E": 256, "ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
    for fp4 in (True, False):
        kind = {"FP4": fp4, "PACKED": True, "TRANSPOSED": not fp4}
        built = compiled(lowbit_grouped_mm._multiply, capability, sizes | kind, warps, stages, PRODUCT_MULTIPLES)
        assert spilled(built) == 0, "a program's values must fit into its registers"
        print("lowbit", built.metadata.shared)


def fp8_products(capability: int) -> list[int]:
    """Shared memory of the products with FP4 and FP8 weights for many rows, with the largest tiles.

    Raises:
        triton.CompilationError: the GPU has no FP8 products.
    """
    rows, columns, warps, stages = fp8_grouped_mm.TILES[-1]
    sizes = {"PACKED": True, "ALIGN": 16, "E": 256, "ROWS": rows, "COLUMNS": columns}
    taken = []
    for fp4 in (True, False):
        kernel = fp8_grouped_mm._multiply_fp8
        built = compiled(kernel, capability, sizes | {"FP4": fp4}, warps, stages, FP8_MULTIPLES)
        assert spilled(built) == 0, "a program's values must fit into its registers"
        taken.append(built.metadata.shared)
    return taken


def main(capability: int, heads: int, keys: int) -> None:
    """All kernels with 64 heads of 512 channels in bf16, and indexer heads of 128."""
    wide, tile = {"H": heads, "C": 512}, {"TILE": keys}
    for seen in (True, False):
        listed = wide | tile | {"LIST": seen}
        print("forward", shared(sparse_attention._forward, capability, listed, 8, 2))
        print("queries", shared(sparse_attention_gradients._queries, capability, listed, 8, 1))
    narrow = wide | {"TILE": KEYS}
    print("keys", shared(sparse_attention_gradients._keys, capability, narrow, 8, 2))
    print("spread", shared(sparse_attention_gradients._spread, capability, narrow, 8, 2))
    assert shared(sparse_attention_gradients._gather, capability, {"C": 512, "ROWS": 8}, 4, 2) == 0, "it needs none"
    choice = {"C": 128, "H": 64, "TILE": 128, "S": index_scores.SPAN, "K": 1024, "SCORES": True}
    built = compiled(index_scores._choose, capability, choice, index_scores.WARPS, 2, INDEX_MULTIPLES)
    assert spilled(built) == 0, "a query's scores must fit into registers"
    print("index", built.metadata.shared)
    lowbit_products(capability)
    compiled(fp8_grouped_mm._encode, capability, {"R": fp8_grouped_mm.ROWS, "G": 128}, 4, 1)
    if divmod(capability, 10) >= fp8_grouped_mm.CAPABILITY:
        for taken in fp8_products(capability):
            print("fp8", taken)
    streams = {"S": 4, "R": 32, "M": hyper_route_tiles.TOKENS, "C": hyper_route_tiles.WIDTH}
    for kernel in (hyper_route._read, hyper_route_gradients._read_backward):
        warps, stages = hyper_route_tiles.OPTIONS.values()
        built = compiled(kernel, capability, streams, warps, stages, STREAM_MULTIPLES)
        assert spilled(built) == 0, "tiles of streams must fit into registers"
        print("streams", built.metadata.shared)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
