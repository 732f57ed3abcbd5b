"""The model and its runs on a GPU are those of a CPU up to rounding."""

from pathlib import Path

import pytest
import torch

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.generate.static_steps import StaticSteps
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.generate.static_models import made
from tests.places import RECIPES
from tests.read_run import losses
from tests.run_cli import seektune

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LENGTH = 300


def both(toy_model, **changes) -> tuple[DeepseekV4ForCausalLM, DeepseekV4ForCausalLM]:
    return toy_model(torch.float32, **changes), toy_model(torch.float32, **changes).cuda()


@pytest.mark.parametrize("numerics", ["plain", "released"])
def test_logits_and_gradients(toy_model, numerics: str):
    here, there = both(toy_model, numerics=numerics)
    tokens = torch.randint(here.config.vocab_size, (2, LENGTH))
    found, expected = there(tokens.cuda(), labels=tokens.cuda()), here(tokens, labels=tokens)
    if numerics == "plain":
        torch.testing.assert_close(found.logits.cpu(), expected.logits, rtol=0, atol=2e-3)
    else:  # a number beside a rounding boundary may fall on the other side
        assert (found.logits.cpu() - expected.logits).abs().median() < 1e-3
    torch.testing.assert_close(found.loss.cpu(), expected.loss, rtol=1e-3, atol=0)
    if numerics == "plain":
        found.loss.backward()
        expected.loss.backward()
        gradients = {name: p.grad for name, p in here.named_parameters() if p.grad is not None}
        for name, p in there.named_parameters():
            if name in gradients:
                assert (p.grad.cpu() - gradients[name]).norm() <= 2e-3 * gradients[name].norm() + 1e-6, name


def test_cached_decoding_is_the_full_forward(toy_model):
    _, model = both(toy_model)
    tokens = torch.randint(model.config.vocab_size, (2, LENGTH)).cuda()
    with torch.no_grad():
        whole, cache = model(tokens).logits, model.new_cache(2, LENGTH)
        sizes = [130, *[1] * 8, LENGTH - 138]
        parts = torch.cat([model(part, cache=cache).logits for part in tokens.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["plain", "quantized", "quantized, adapters"])
@torch.inference_mode()
def test_a_captured_step_is_the_other_step(toy_model, kind: str):
    """Rows that end windows of every kind, a cache that grows, and one that is read and decoded again."""
    model = made(toy_model, kind, torch.float32).cuda()
    tokens = torch.randint(model.config.vocab_size, (2, LENGTH)).cuda()
    caches = [model.new_cache(2, LENGTH, grows=True) for _ in range(2)]
    for cache in caches:
        model.advance(tokens[:, :250], cache, [250, 125])
    steps = StaticSteps(model)
    for number in range(250, 262):
        if number == 255:
            steps.write_back()
        found = steps.advance(tokens[:, number, None], caches[0])
        wanted = model.advance(tokens[:, number, None], caches[1])
        assert float((found - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
    assert caches[0].lengths == caches[1].lengths == [262, 137]


@torch.inference_mode()
def test_graphs_of_several_numbers_of_rows_are_replayed_in_turn(toy_model):
    """They have the same buffers and the same memory for what they compute."""
    _, model = both(toy_model)
    prompts = torch.randint(model.config.vocab_size, (5, 20)).cuda()
    many = model.new_cache(5, LENGTH)
    model.advance(prompts, many)
    few = many.select([3, 1])
    steps = StaticSteps(model)
    expected = [many.select(range(5)), few.select(range(2))]
    for number in (0, 1, 0, 1, 1, 0):
        tokens = torch.randint(model.config.vocab_size, (5 - 3 * number, 1)).cuda()
        found = steps.advance(tokens, (many, few)[number])
        wanted = model.advance(tokens, expected[number])
        assert float((found - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
    assert steps.captured == [8, 2]


@pytest.mark.parametrize("recipe", ["deepseek_v4_tiny_hellaswag.yaml", "deepseek_v4_tiny_lora.yaml"])
def test_a_run_is_that_of_a_cpu_and_resumes(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_hellaswag(tmp_path / "data", train=64, validation=8)
    words = [
        *("train", RECIPES / recipe, f"--data.path={data}", "--batch.global_size=4", "--batch.micro_size=2"),
        *("--evaluate.limit=4", "--checkpoint.every=3", "--schedule.warmup_steps=0"),
    ]

    def run(name: str, *more: str) -> Path:
        done = seektune(*words, f"--run_dir={tmp_path / name}", *more)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return tmp_path / name

    there = run("gpu", "--steps=6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    here = run("cpu", "--steps=6")
    assert dict(losses(there)) == pytest.approx(dict(losses(here)), rel=2e-3)
    monkeypatch.undo()
    run("half", "--steps=3", "--schedule.name=constant")
    half, whole = (run(name, "--steps=6", "--schedule.name=constant") for name in ("half", "whole"))
    assert dict(losses(half)) == pytest.approx(dict(losses(whole)), rel=1e-6)


def test_a_job_of_processes_on_nccl(tmp_path: Path):
    data = write_hellaswag(tmp_path / "data", train=64, validation=8)
    done = seektune(
        *("train", RECIPES / "deepseek_v4_tiny_hellaswag.yaml", f"--data.path={data}", "--steps=3"),
        *("--batch.global_size=4", "--batch.micro_size=2", "--evaluate.limit=4", f"--run_dir={tmp_path / 'run'}"),
        "--nproc-per-node=1",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert len(losses(tmp_path / "run")) == 3
