import math
from dataclasses import replace

import pytest
import torch

from seektune.data.step_data import StepData
from seektune.parallel.model import ParallelModel
from seektune.sequence import IGNORE_INDEX, Batch
from seektune.train.config import LossConfig
from seektune.train.gradient import NotFiniteError
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig
from seektune.train.step import train_step
from tests.train.tiny_run import CONFIG, made_batch, small_model


def run(model, batches, loss=None, lr=1e-2, max_norm=1.0, optimizer=None):
    optimizer = build_optimizer(model, AdamWConfig(lr=lr), seed=0) if optimizer is None else optimizer
    data = StepData.of(batches)
    return train_step(
        ParallelModel.alone(model), optimizer, data, 7, lr, LossConfig() if loss is None else loss, max_norm
    )


def joined(batches):
    return Batch(*(torch.cat([getattr(b, f) for b in batches]) for f in ("tokens", "labels", "documents")))


@pytest.mark.slow
def test_micro_batches_share_one_denominator():
    """Two micro-batches with 12 and 2 taught tokens move the weights as one batch of both does."""
    parts = [made_batch(0, taught=6), made_batch(1, taught=1)]
    apart, together = small_model(), small_model()
    # plain losses only: the optimizer's division by the root of the moments would hide a wrong common factor
    sgd = [torch.optim.SGD(model.parameters(), lr=1e-2) for model in (apart, together)]
    first = run(apart, parts, max_norm=None, optimizer=sgd[0])
    second = run(together, [joined(parts)], max_norm=None, optimizer=sgd[1])
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert first.mtp_loss == pytest.approx(second.mtp_loss, rel=1e-5)
    assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-4)
    for a, b in zip(apart.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def weighted(batch, weights):
    columns = {"weights": torch.tensor(weights)[:, None].expand(batch.tokens.shape)}
    return replace(batch, columns=columns)


def test_rows_of_weight_zero_are_as_if_they_were_not_taught():
    """Also for the MTP block, whose loss has the same denominator."""
    heavy, light = small_model(), small_model()
    batch = made_batch(0)
    untaught = torch.full_like(batch.labels[1:], IGNORE_INDEX)
    alone = replace(batch, labels=torch.cat([batch.labels[:1], untaught]))
    sgd = [torch.optim.SGD(model.parameters(), lr=1e-2) for model in (heavy, light)]
    expected = run(heavy, [alone], optimizer=sgd[0])
    found = run(light, [weighted(batch, [3.0, 0.0])], optimizer=sgd[1])
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.mtp_loss == pytest.approx(expected.mtp_loss, rel=1e-6)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert (found.taught_tokens, expected.taught_tokens) == (12, 6)


def test_weights_must_sum_to_something():
    with pytest.raises(ValueError, match="step 7: the weights of its taught tokens sum to 0; their sum must be above"):
        run(small_model(), [weighted(made_batch(0), [0.0, 0.0])])


@pytest.mark.slow
def test_the_record_counts_and_reports_per_taught_token():
    model = small_model()
    batches = [made_batch(0), made_batch(1)]
    with torch.no_grad():
        losses = [
            float(model(b.tokens, labels=b.labels, documents=b.documents, num_items_in_batch=1).loss) for b in batches
        ]
    record = run(model, batches)
    assert (record.step, record.lr) == (7, 1e-2)
    assert (record.tokens, record.taught_tokens) == (40, 24)
    assert record.loss == pytest.approx(sum(losses) / 24, rel=1e-5)
    assert record.tokens_per_s == pytest.approx(40 / record.seconds)
    assert record.memory_gb > 0
    assert set(record.loads) == {0, 1, 2, 3}
    # every real token goes to two experts; the MTP block sees the tokens that another one follows
    assert [sum(load) for load in record.loads.values()] == [80, 80, 80, 72]


def test_clipping_bounds_the_move_not_the_reported_norm():
    models = [small_model(), small_model()]
    sgd = [torch.optim.SGD(model.parameters(), lr=1.0) for model in models]
    records = [
        run(m, [made_batch(0)], lr=1.0, max_norm=n, optimizer=o)
        for m, n, o in zip(models, (None, 1e-3), sgd, strict=True)
    ]
    assert records[0].grad_norm == pytest.approx(records[1].grad_norm)
    moved = math.sqrt(
        sum(
            float((a - b).detach().square().sum())
            for a, b in zip(models[1].parameters(), small_model().parameters(), strict=True)
        )
    )
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_mtp_runs_only_where_it_is_weighted():
    record = run(small_model(), [made_batch(0)], LossConfig(mtp_weight=0.0))
    assert record.mtp_loss == 0
    assert set(record.loads) == {0, 1, 2}
    assert run(small_model(), [made_batch(0)]).mtp_loss > 1


def test_balance_loss_and_bias_are_off_unless_asked_for():
    model = small_model()
    assert run(model, [made_batch(0)]).balance_loss == 0
    assert model.gates()[1].bias.count_nonzero() == 0
    record = run(model, [made_batch(0)], LossConfig(balance_weight=1e-2, bias_update_speed=0.001))
    # even loads give 1 per layer
    assert 3.5 < record.balance_loss < 8
    assert set(model.gates()[1].bias.abs().tolist()) <= {0.0, float(torch.tensor(0.001))}
    assert model.gates()[1].bias.count_nonzero() > 0


def snapshot(model, optimizer):
    return [t.clone() for t in model.state_dict().values()], len(optimizer.state)


def assert_untouched(model, optimizer, before):
    after = snapshot(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_not_finite_stops_before_anything_moves():
    model = small_model()
    with torch.no_grad():
        model.embed.weight[63] = math.nan
    optimizer = build_optimizer(model, AdamWConfig(), seed=0)
    good, bad = made_batch(0), made_batch(1)
    good = replace(good, tokens=good.tokens.clamp(max=62))
    bad.tokens[0, 5] = 63
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(NotFiniteError, match=r"step 7: the loss is not finite in micro-batch 2 of 2 \(loss nan"):
        run(model, [good, bad], LossConfig(bias_update_speed=1.0), optimizer=optimizer)
    assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.gates()[1].bias.count_nonzero() == 0


def test_a_gradient_that_is_not_finite_stops_and_is_named():
    model = small_model()
    optimizer = build_optimizer(model, AdamWConfig(), seed=0)
    model.layers[1].attn.wkv.weight.register_hook(lambda gradient: gradient * math.inf)
    before = snapshot(model, optimizer)
    with pytest.raises(
        RuntimeError, match=r"step 7 \(loss 4\.\d+\): the gradient is not finite in layers.1.attn.wkv.weight;"
    ):
        run(model, [made_batch(0)], optimizer=optimizer)
    assert_untouched(model, optimizer, before)


def test_a_step_that_teaches_nothing_is_refused():
    batch = made_batch(0)
    empty = replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX))
    with pytest.raises(ValueError, match="step 7: none of its 20 tokens is taught"):
        run(small_model(), [empty])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_loss_decreases(dtype):
    model = small_model(dtype)
    optimizer = build_optimizer(model, AdamWConfig(), seed=0)
    losses = [run(model, [made_batch(0)], lr=1e-2, optimizer=optimizer).loss for _ in range(15)]
    assert losses[0] == pytest.approx(math.log(CONFIG.vocab_size), rel=0.1)
    assert losses[-1] < losses[0] - 1
