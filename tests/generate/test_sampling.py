import math

import pytest
import torch

from seektune.generate.sampling import Sampler
from seektune.generate.sampling_params import Sampling

CASES = (
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(top_k=5),
    Sampling(top_p=0.6),
    Sampling(min_p=0.2),
    Sampling(repetition_penalty=1.7),
    Sampling(temperature=1.4, top_k=9, top_p=0.8, min_p=0.05, repetition_penalty=0.7),
)
PROMPT = [3, 3, 8, 11]


def transformers_distribution(sampling: Sampling, logits: torch.Tensor) -> torch.Tensor:
    from transformers.generation import logits_process as oracle

    steps = [oracle.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    steps += [oracle.TemperatureLogitsWarper(sampling.temperature)] if sampling.temperature != 1 else []
    steps += [oracle.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    steps += [oracle.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    steps += [oracle.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    scores = logits[None].clone()
    for step in steps:
        scores = step(torch.tensor([PROMPT]), scores)
    return scores[0].softmax(dim=0)


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_distribution_matches_transformers(sampling):
    logits = 2 * torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = Sampler(sampling, 0, PROMPT).distribution(logits)
    torch.testing.assert_close(found, transformers_distribution(sampling, logits), rtol=1e-6, atol=1e-9)
    if sampling == CASES[-1]:
        assert 1 < int((found > 0).sum()) < 9


def test_repetition_penalty_includes_new_tokens():
    logits = torch.arange(4.0) - 1
    sampler = Sampler(Sampling(repetition_penalty=2.0), 0, [0])
    before = sampler.distribution(logits)
    sampler.observe(3)
    after = sampler.distribution(logits)
    assert after[3] < before[3]
    torch.testing.assert_close(after, torch.tensor([-2.0, 0, 1, 1]).double().softmax(dim=0))


@pytest.mark.parametrize("penalty", [5e-324, 1e-308, 1e308])
@pytest.mark.parametrize("temperature", [0.0, 1e-308, 1.0])
def test_extreme_penalties_stay_finite(penalty: float, temperature: float):
    logits = torch.tensor([2.0, 5.0, 3.0, -4.0, 0.0, 4.0, -2.0])
    found = Sampler(Sampling(temperature, repetition_penalty=penalty), 0, range(7)).distribution(logits)
    assert found.isfinite().all()
    if penalty < 1:
        assert found.tolist() == [0, 1, 0, 0, 0, 0, 0]
    elif temperature == 1:
        torch.testing.assert_close(found, torch.tensor([1.0, 1, 1, 0, 1, 1, 0]).double() / 5)
    nothing = Sampler(Sampling(temperature, repetition_penalty=penalty), 0, range(3)).distribution(torch.zeros(3))
    assert nothing.isfinite().all()
    below = Sampler(Sampling(temperature, repetition_penalty=penalty), 0, range(3)).distribution(-torch.arange(2.0, 5))
    assert below.argmax() == 0


def test_temperature_0_takes_the_most_likely_token():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=4.0), 0, [1])
    assert sampler.distribution(torch.tensor([1.0, 3.0, 2.0])).tolist() == [0, 0, 1]


def test_temperature_near_0_is_almost_greedy():
    found = Sampler(Sampling(temperature=1e-300), 0, []).distribution(torch.tensor([1e4, 3.0, 1e4 + 1]))
    assert found.tolist() == [0, 0, 1]


def test_samples_follow_weights_and_seed():
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    sampler = Sampler(Sampling(), 7, [])
    drawn = [sampler.draw(weights) for _ in range(2000)]
    assert set(drawn) == {1, 3}
    assert abs(drawn.count(1) / 2000 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 2000)
    again = Sampler(Sampling(), 7, [])
    assert [again.draw(weights) for _ in range(50)] == drawn[:50]
    other = Sampler(Sampling(), 8, [])
    assert [other.draw(weights) for _ in range(50)] != drawn[:50]


def test_accepted_and_corrected_drafts_follow_the_target_distribution():
    target = torch.tensor([0.5, 0.2, 0.3, 0.0], dtype=torch.float64)
    drafted = torch.tensor([0.1, 0.6, 0.1, 0.2], dtype=torch.float64)
    sampler, counts, accepted, draws = Sampler(Sampling(), 1, []), [0] * 4, 0, 4000
    for _ in range(draws):
        token = sampler.draw(drafted)
        if sampler.accepts(token, target, drafted):
            accepted += 1
        else:
            token = sampler.draw((target - drafted).clamp(min=0))
        counts[token] += 1
    for count, share in zip(counts, target.tolist(), strict=True):
        assert abs(count / draws - share) <= 4 * math.sqrt(share * (1 - share) / draws)
    assert abs(accepted / draws - 0.4) < 0.04


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, not {value}"):
        Sampling(**{name: value})
