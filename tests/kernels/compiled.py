"""Compile the attention kernels with released widths for a GPU that need not be present; print their shared memory.

`python -m tests.kernels.compiled CAPABILITY HEADS KEYS` prints a line of name and bytes for each kernel.
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seektune.kernels.triton import index_scores, sparse_attention, sparse_attention_gradients
from seektune.kernels.triton.sparse_attention_gradients import KEYS

BF16, FP32, INT64 = "*bf16", "*fp32", "*i64"
TYPES = (
    dict.fromkeys(("q", "keys", "entries", "out", "grad", "dq", "weights"), BF16)
    | dict.fromkeys(("sink", "total", "along", "dsink", "parts", "shares", "scores"), FP32)
    | dict.fromkeys(("reach", "index", "first", "count", "low", "high", "chosen", "order", "starts"), INT64)
    | {"scale": "fp32"}
)
"""Types of arguments; all others are int32."""


def shared(kernel: triton.JITFunction, capability: int, sizes: dict[str, int], warps: int, stages: int) -> int:
    """Shared memory of a program in bytes, compiled down to ptxas."""
    own = {"entries": "i32"} if kernel is index_scores._scores else {}
    types = {name: "constexpr" if name in sizes else (TYPES | own).get(name, "i32") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
    options = {"num_warps": warps, "num_stages": stages}
    built = triton.compile(
        ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32), options=options
    )
    assert built.asm["cubin"]
    return int(built.metadata.shared)


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
    asked = {"C": 128, "H": index_scores.HEADS, "TILE": index_scores.TILE}
    print("scores", shared(index_scores._scores, capability, asked, 4, 3))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
