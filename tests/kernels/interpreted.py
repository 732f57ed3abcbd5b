"""Compare a Triton kernel with its reference: `TRITON_INTERPRET=1 python -m tests.kernels.interpreted NAME`."""

import sys

import torch
from torch import Tensor

from seektune.kernels import Prefix, index_topk
from seektune.kernels.triton import sparse_attention_gradients as gradients
from seektune.sequence import SequenceLayout

from .inputs import CASES, attention, missing_keys, no_queries
from .twins import kernel, run

BOUND = 2e-5
SMALL = torch.tensor([[1] * 25 + [2] * 2 + [0] * 2 + [3] * 13])
ATTENTION = {
    "window": attention("window", documents=SMALL),
    "prefix, keys before": attention("prefix", before=7, documents=SMALL),
    "chosen, keys before": attention("chosen", before=20, documents=SMALL),
    "few keys": missing_keys,
    "no queries": no_queries,
}
"""Few queries, because an interpreted program takes some ten milliseconds."""
MANY = "many"
"""The case of thousands of tokens, for chunks of the eager kernels; Triton has a program for each token."""


def compare(found: list[Tensor], expected: list[Tensor]) -> int:
    """Assert equality up to rounding; returns the number of elements."""
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        scale = max(float(y.detach().abs().max()), 1e-3) if y.numel() else 1.0
        torch.testing.assert_close(x.double() / scale, y.double() / scale, rtol=0, atol=BOUND)
    return sum(x.numel() for x in expected)


def compare_index_topk() -> int:
    """Compare the top-k of a packed row with many ties; returns the number of elements."""
    documents = torch.tensor([[1] * 60 + [2] * 3 + [0] * 6 + [3] * 51])
    windows = SequenceLayout.from_documents(documents).windows(4)
    q, keys, weights = torch.randn(1, 120, 2, 12), torch.randn(1, 30, 12), torch.randn(1, 120, 2)
    arguments = q, keys, weights, Prefix(windows.first_BT, windows.count_BT), 5
    found, expected = (run(*arguments).index_BTK for run in (index_topk.on_gpu, index_topk.reference))
    assert torch.equal(found.sort(dim=-1).values, expected.sort(dim=-1).values)
    return found.numel()


def compare_split_lists() -> int:
    """Compare attention to chosen entries, a few queries at a time, several programs for the gradient of an entry."""
    gradients.LIST_VALUES = 4000
    gradients.SHARE = 3
    arguments = ATTENTION["chosen, keys before"](torch.float32)
    pair = kernel("sparse_attention")
    return compare(run(pair.on_gpu, arguments), run(pair.reference, arguments))


def main(name: str) -> None:
    """Compare all cases of an operation."""
    torch.manual_seed(0)
    if name == "split_lists":
        print("equal", compare_split_lists())
        return
    if name == "index_topk":
        print("equal", compare_index_topk())
        return
    cases = ATTENTION if name == "sparse_attention" else {k: v for k, v in CASES[name].items() if k != MANY}
    for label, case in cases.items():
        arguments = case(torch.float32)
        print(label, "equal", compare(run(kernel(name).on_gpu, arguments), run(kernel(name).reference, arguments)))
    if name == "clamped_swiglu":
        bad = torch.tensor([torch.nan, 1.0]), torch.tensor([1.0, torch.nan])
        assert kernel(name).on_gpu(*bad, 1.5).isnan().all(), "NaN must propagate"


if __name__ == "__main__":
    main(sys.argv[1])
