"""The MTP block: what it reads, what it shares, and how it is packed."""

import pytest
import torch

from seektune.model.gate import RoutingLedger
from seektune.model.transformer import TokenRows
from seektune.sequence import SequenceLayout


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


@torch.no_grad()
def test_row_t_adds_the_next_embedding_to_each_stream_and_runs_one_more_block(toy_model):
    model = toy_model()
    tokens = torch.randint(64, (1, 50))
    mtp = model.mtp[0]
    streams = model.backbone(TokenRows(tokens, SequenceLayout.single(1, 50))).streams_BTSD
    embedding = model.embed.weight[tokens[0, 1:]]
    entry = torch.stack(
        [
            mtp.enorm.weight * rms(embedding) @ mtp.e_proj.weight.T
            + mtp.hnorm.weight * rms(streams[0, :-1, k]) @ mtp.h_proj.weight.T
            for k in range(4)
        ],
        dim=1,
    )
    layout = SequenceLayout.single(1, 49)
    x = mtp.hc_attn(entry[None], lambda y: mtp.attn(mtp.attn_norm(y), layout))
    x = mtp.hc_ffn(x, lambda y: mtp.ffn(mtp.ffn_norm(y), tokens[:, 1:], layout, None))
    hidden = mtp.norm.weight * rms(mtp.hc_head(x))
    expected = hidden @ model.head.weight.T
    out = model(tokens, mtp=True)
    assert out.mtp_logits.shape == (1, 49, 64)
    torch.testing.assert_close(out.mtp_logits, expected, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(out.mtp_logits, out.logits[:, :-1], atol=0.1)


@torch.no_grad()
def test_the_block_is_a_sliding_window_layer_with_a_top_k_gate(toy_model):
    model = toy_model(num_hash_layers=4)
    mtp = model.mtp[0]
    assert mtp.attn.ratio == 0
    assert not [name for name, _ in mtp.named_parameters() if "compressor" in name or "indexer" in name]
    assert torch.equal(mtp.attn.rope.frequencies(), model.layers[0].attn.rope.frequencies())
    assert "mtp.0.ffn.gate.bias" in model.state_dict()
    assert not any("embed" in name or "head.weight" in name for name, _ in mtp.named_parameters())


def test_embedding_and_head_learn_from_the_mtp_loss(toy_model):
    model = toy_model()
    tokens = torch.randint(64, (1, 20))
    model(tokens, labels=tokens, mtp=True).mtp_loss.backward()
    for name in (
        "embed.weight",
        "head.weight",
        "mtp.0.e_proj.weight",
        "mtp.0.h_proj.weight",
        "layers.0.attn.wkv.weight",
    ):
        assert model.get_parameter(name).grad.abs().max() > 0, name
    # the backbone's own way out is not used
    assert model.norm.weight.grad is None
    assert model.hc_head.fn.grad is None


@torch.no_grad()
def test_the_mtp_block_does_not_look_into_the_next_document(toy_model):
    model = toy_model()
    documents = torch.tensor([[1] * 10 + [2] * 10])
    tokens = torch.randint(64, (1, 20))
    other = tokens.clone()
    other[0, 10] = (other[0, 10] + 1) % 64
    first = model(tokens, documents=documents, mtp=True).mtp_logits
    second = model(other, documents=documents, mtp=True).mtp_logits
    # row 9 reads token 10 of the next document and is taught by nobody; rows 0 to 8 must not move
    assert (first[0, :9] - second[0, :9]).abs().max() < 1e-12
    assert (first[0, 10:] - second[0, 10:]).abs().max() > 1e-6


@pytest.mark.parametrize("length", [1, 2])
def test_rows_too_short_for_the_block_have_empty_or_single_logits_and_no_loss(toy_model, length):
    model = toy_model()
    tokens = torch.randint(64, (2, length))
    out = model(tokens, labels=tokens, mtp=True)
    assert out.mtp_logits.shape == (2, length - 1, 64)
    assert out.mtp_loss.item() == 0.0


@torch.no_grad()
def test_a_ledger_follows_the_block_even_where_it_has_no_rows(toy_model):
    model = toy_model()
    ledger = RoutingLedger()
    model(torch.randint(64, (2, 1)), mtp=True, ledger=ledger)
    assert ledger.loads[4].tolist() == [0] * 8
    assert ledger.balance[4].item() == 0.0


def test_without_the_block_asking_for_it_is_an_error(toy_model):
    model = toy_model(num_nextn_predict_layers=0, compress_ratios=[0, 4, 128, 4])
    assert len(model.mtp) == 0
    with pytest.raises(ValueError, match="num_nextn_predict_layers"):
        model(torch.zeros(1, 4, dtype=torch.long), mtp=True)
