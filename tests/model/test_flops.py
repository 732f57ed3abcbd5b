"""FLOPs by part compared with torch's counter, and with sums over the keys that each query sees."""

import ast
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seektune.kernels import linear_cross_entropy
from seektune.model import attention, flops
from seektune.model.flops import chooses, forward_flops, layer_flops, training_flops, visible_keys
from seektune.model.indexer_loss import IndexerLoss, IndexerTraining
from seektune.sequence import SequenceLayout

LENGTH = 64


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture
def model(toy_model):
    return toy_model(torch.float32)


@pytest.fixture
def no_attention(monkeypatch):
    """Replaces attention with sums, which have no counted FLOPs but keep every input in the graph."""

    def sums(q, keys, entries, sink, *_):
        return q + keys.unsqueeze(2) + entries.sum() + sink[:, None]

    monkeypatch.setattr(attention, "sparse_attention", sums)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_projections_compressor_and_their_gradients(model, no_attention, layer):
    config, module = model.config, model.layers[layer].attn
    x = torch.randn(1, LENGTH, config.hidden_size, requires_grad=True)
    layout = SequenceLayout.single(1, LENGTH)
    expected = layer_flops(config, config.ratio(layer), LENGTH)
    own = expected["projections"] + expected.get("compressor", 0)
    forward = counted(lambda: module(x, layout))
    indexer = expected.get("indexer", 0)
    if layer == 1:
        assert chooses(config, 4, LENGTH)
        # the FLOPs of the indexer's scores depend on chunks; those of its projections do not
        assert forward > own + indexer / 3
        module.indexer.topk = LENGTH
    assert counted(lambda: module(x, layout)) == own
    assert counted(lambda: module(x, layout).sum().backward()) == 3 * own


@pytest.mark.parametrize("stage", ["warmup", "sparse"])
def test_a_trained_indexer(model, no_attention, stage):
    """Chunks also score entries that some of their queries do not see: up to as many again."""
    config, module = model.config, model.layers[1].attn
    module.requires_grad_(False).indexer.requires_grad_(True)
    expected = layer_flops(config, 4, LENGTH, stage)
    own = expected["projections"] + expected["compressor"]
    indexer_loss = IndexerLoss(IndexerTraining(LENGTH, warmup=stage == "warmup"))

    def run():
        module(torch.randn(1, LENGTH, config.hidden_size), SequenceLayout.single(1, LENGTH), indexer_loss)
        indexer_loss.loss.backward()

    assert 1 <= (counted(run) - own) / expected["indexer"] < 2


def test_experts_and_gate_and_their_gradients(model):
    config, moe = model.config, model.layers[2].ffn
    x = torch.randn(1, LENGTH, config.hidden_size, requires_grad=True)
    own = layer_flops(config, 128, LENGTH)
    expected = own["experts"] + own["gate"]
    call = x, None, SequenceLayout.single(1, LENGTH), None
    assert counted(lambda: moe(*call)) == expected
    assert counted(lambda: moe(*call).sum().backward()) == 3 * expected


def test_hyper_connections_and_their_gradients(model):
    """Some gradients are sums of elementwise products, which torch does not count."""
    config, connection = model.config, model.layers[0].hc_attn
    streams = torch.randn(1, LENGTH, config.hc_mult, config.hidden_size, requires_grad=True)
    expected = layer_flops(config, 0, LENGTH)["mHC"] // 2
    assert counted(lambda: connection(streams, torch.tanh)) == expected
    found = counted(lambda: connection(streams, torch.tanh).sum().backward())
    assert 2 * expected < found <= 3 * expected


def test_head(model):
    config = model.config
    hidden = torch.randn(LENGTH, config.hidden_size, requires_grad=True)
    targets = torch.randint(config.vocab_size, (LENGTH,))
    found = counted(lambda: linear_cross_entropy(hidden, model.head.weight, targets).backward())
    assert found == training_flops(config, LENGTH)["head"]


@pytest.mark.parametrize("length", [1, 7, 16, 35, 36, 64, 300])
@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_visible_keys_equal_the_layouts(toy_config, ratio, length):
    config = toy_config()
    layout = SequenceLayout.single(1, length)
    near = (layout.positions + 1).clamp(max=config.sliding_window).sum()
    far = torch.zeros(()) if ratio == 0 else layout.windows(ratio).count_BT
    if ratio == 4:
        far = far.clamp(max=config.index_topk)
    assert visible_keys(config, ratio, length) == int(near + far.sum())


def test_parts_sum_over_layers_and_indexer_has_no_backward(toy_config):
    config = toy_config()
    forward, training = forward_flops(config, 300), training_flops(config, 300)
    assert forward["experts"] == config.num_hidden_layers * layer_flops(config, 0, 300)["experts"]
    assert forward["indexer"] == 2 * layer_flops(config, 4, 300)["indexer"] == training["indexer"]
    assert all(training[part] == 3 * forward[part] for part in forward if part != "indexer")
    assert forward_flops(config, 300, mtp=True)["head"] == 2 * 599 * config.hidden_size * config.vocab_size


def test_flops_module_does_not_import_torch():
    tree = ast.parse(Path(flops.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"collections", "seektune.model.choices", "seektune.model.config"}
