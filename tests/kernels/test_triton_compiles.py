"""The large kernels compile for GPUs that need not be present, and their programs fit into shared memory."""

import pytest

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
    assert len(taken) == 11
    assert all(0 < int(shared) <= limit for _, shared in taken), taken
