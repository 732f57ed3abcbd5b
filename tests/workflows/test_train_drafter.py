"""Training DSpark stages on the model's own answers: the drafter gets better, and nothing else changes by a byte."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from seektune.checkpoint.convert import convert
from seektune.io.jsonl import read_records
from seektune.recipe.checks import check_architecture
from seektune.run.build import read_config
from seektune.run.own_answers import read_answers
from seektune.signals import Interrupted
from seektune.train import trainer
from seektune.workflows import train as workflow
from tests.cache import CACHE
from tests.checkpoint.reader import raw
from tests.conftest import DSPARK

SIZES = {"vocab_size": 512, "hidden_size": 64, "moe_intermediate_size": 32}


@pytest.fixture(scope="module")
def base(toy_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose next token follows from the last one, more or less, and a drafter that knows nothing of it."""
    folder = tmp_path_factory.mktemp("drafter") / "base"
    model = toy_model(torch.float32, drafter=True, **DSPARK | {"dspark_markov_rank": 32}, **SIZES)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if name.endswith(("wo_b.weight", "w2", "w2.weight")):
                x.mul_(0.1)
        model.norm.weight.fill_(3.0)
        # of few tokens, so that a short training sees what follows each
        model.head.weight[40:] = 0
    model.save_pretrained(folder, format="released")
    return folder


@pytest.fixture
def wanted(recipe, base):
    def make(**changes):
        return recipe(
            model={"weights": str(base), "dtype": "fp32"},
            loss={"mtp_weight": 0},
            train={"drafter": True, "drafter_answers": 24, "drafter_answer_tokens": 24, "drafter_anchors": 16},
            evaluate__tasks=None,
            evaluate__every=None,
            optimizer={"lr": 1e-2, "weight_decay": 0},
            **changes,
        )

    return make


def train(recipe) -> Path:
    return workflow.train(recipe, "run", (), CACHE)


@pytest.mark.slow
def test_a_drafter_learns_what_the_model_says(wanted, base, tmp_path):
    folder = train(wanted(steps=30))
    lines = [line for line in read_records(folder / "metrics.jsonl") if "loss" in line]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    for line in lines:
        parts = 0.1 * line["draft_cross_entropy"] + 1.8 * line["draft_distance"] + line["draft_confidence"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
    scores = json.loads((folder / "evaluation.json").read_text())["drafter"]
    assert scores["after"]["accepted_length"]["value"] > scores["before"]["accepted_length"]["value"]
    answers = read_answers(folder / "own_answers.jsonl")
    assert len(answers) == 24
    assert all(0 < sum(each.taught) <= 24 for each in answers)
    # back in the released format, only the stages differ
    convert(folder / "model", tmp_path / "released", "released", original=base)
    before = raw(base)
    after = raw(tmp_path / "released")
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed
    assert all(name.startswith("mtp.") for name in changed)


@pytest.mark.slow
def test_an_interrupted_training_of_the_drafter_resumes_to_the_same_end(wanted, tmp_path, monkeypatch):
    whole = train(wanted(steps=4, run_dir=str(tmp_path / "whole")))
    plain = trainer.train_step

    def stopping(*args, **kwargs):
        if args[3] == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", stopping)
        with pytest.raises(Interrupted):
            train(wanted(steps=4))
    folder = train(wanted(steps=4))
    for name in ("own_answers.jsonl", "evaluation.json", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    shutil.rmtree(folder / "model")
    (folder / "report.html").unlink()
    (folder / "own_answers.jsonl").unlink()
    with pytest.raises(ValueError, match=r"own_answers.jsonl is missing"):
        train(wanted(steps=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"preset": "tiny", "dtype": "fp32"}}, "needs a checkpoint with DSpark stages"),
        ({"model": {"preset": "tiny-0731", "dtype": "fp32"}}, "needs model.weights"),
        ({"lora": {"targets": ["attn"]}}, "trains no adapters"),
        ({"parallel": {"pp_size": 2}}, "needs parallel.pp_size and parallel.cp_size 1"),
    ],
)
def test_what_cannot_train_a_drafter_is_refused(wanted, changes, message):
    recipe = wanted()
    values = json.loads(recipe.model_dump_json())
    for section, value in changes.items():
        values[section] = value if section == "model" else {**values[section], **value}
    changed = type(recipe).model_validate_json(json.dumps(values), strict=True)
    architecture = read_config(changed.model)
    with pytest.raises(ValueError, match=message):
        check_architecture(changed, architecture)


@pytest.mark.parametrize(
    "line",
    ['{"tokens": [1, 2]}', '{"tokens": [1, -2], "prompt_tokens": 1}', '{"tokens": [1, 2], "prompt_tokens": 2}', "7"],
)
def test_damaged_answers_are_named_by_line(tmp_path, line):
    (tmp_path / "own_answers.jsonl").write_text(f'{{"tokens": [1, 2], "prompt_tokens": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"own_answers.jsonl line 2"):
        read_answers(tmp_path / "own_answers.jsonl")
