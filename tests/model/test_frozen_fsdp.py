"""Packed weights travel through FSDP2 as the bytes they are: two processes compute what one does."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from seektune.model.adapters import AdapterShape, adapt, matching, start
from seektune.model.causal_lm import DeepseekV4ForCausalLM


def made(folder: Path) -> DeepseekV4ForCausalLM:
    model = DeepseekV4ForCausalLM.from_pretrained(folder, packed=True)
    adapt(model, matching(model, ["attn", "ffn.experts", "ffn.shared_experts"]), AdapterShape(rank=2, alpha=4.0))
    start(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora.trained.B"):
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    return model


def worker(rank: int, folder: Path, meeting: Path) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    expected, model = made(folder), made(folder)
    ids = torch.arange(80).view(2, 40) % model.config.vocab_size
    # mixed precision must leave integers alone
    policy = MixedPrecisionPolicy(param_dtype=torch.float32)
    for block in model.layers:
        fully_shard(block, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mp_policy=policy)
    outputs = [each(ids, labels=ids, mtp=True) for each in (expected, model)]
    for out in outputs:
        (out.loss + out.mtp_loss).backward()
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert torch.equal(outputs[0].mtp_loss, outputs[1].mtp_loss)
    for (name, one), (_, many) in zip(expected.named_parameters(), model.named_parameters(), strict=True):
        local = many.to_local()
        if one.dtype in (torch.int8, torch.uint8):
            assert local.dtype == one.dtype, name
            assert local.numel() <= -(-len(one) // 2) * one[0].numel(), name
        if one.requires_grad:
            torch.testing.assert_close(many.grad.full_tensor(), one.grad, rtol=1e-5, atol=1e-7)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_what_one_does(parity_folder: Path, tmp_path: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(worker, (parity_folder, tmp_path / "meeting"), nprocs=2)
