"""The large kernels compile for GPUs that need not be present, and their programs fit into shared memory."""

import pytest
import torch

pytest.importorskip("triton")

GPUS = {"A100": (80, 166_912), "H100": (90, 232_448), "B200": (100, 232_448), "RTX PRO 6000": (120, 101_376)}
"""Compute capability, and bytes of shared memory that a program may ask for (CUDA programming guide)."""


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS)
def test_released_widths_fit_shared_memory(gpu: str, capsys: pytest.CaptureFixture[str]):
    from seektune.kernels.triton.tiles import SIZES
    from tests.kernels.compiled import main

    capability, limit = GPUS[gpu]
    heads, keys = next((heads, keys) for least, heads, keys in SIZES if limit >= least)
    main(capability, heads, keys)
    taken = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(taken) == (11 if gpu == "A100" else 13)
    assert all(0 < int(shared) <= limit for _, shared in taken), taken


@pytest.mark.slow
def test_fp8_products_are_for_gpus_that_have_them(monkeypatch: pytest.MonkeyPatch):
    """An A100 rounds the rows and multiplies them in bf16."""
    from triton.compiler.errors import CompilationError

    from seektune.kernels.triton.fp8_grouped_mm import has_fp8_products
    from tests.kernels.compiled import fp8_products

    found = {}
    for gpu, (capability, _) in GPUS.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, each=capability: divmod(each, 10))
        found[gpu] = has_fp8_products(torch.device("cuda"))
    assert found == {"A100": False, "H100": True, "B200": True, "RTX PRO 6000": True}
    with pytest.raises(CompilationError):
        fp8_products(80)
