import json
from pathlib import Path

import pytest
import torch

from seektune.data.synthetic import made_hellaswag, write_rows
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.recipe.load import load_recipe
from seektune.train.files import read_lines
from seektune.workflows import train as workflow
from seektune.workflows.train import train


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_lines(folder / "metrics.jsonl")]


def test_a_run_leaves_everything(recipe, tmp_path, capsys):
    wanted = recipe(checkpoint={"every": 2}, logging__tensorboard=True)
    folder = train(wanted, "toy", ("a note of the reader",))
    assert folder == tmp_path / "run"
    assert {item.name for item in folder.iterdir()} == {
        *("recipe.yaml", "metrics.jsonl", "validation.jsonl", "expert_loads.jsonl", "evaluation.json", "tensorboard"),
        *("loss.png", "report.html", "checkpoints", "model"),
    }
    assert load_recipe(folder / "recipe.yaml") == wanted
    assert len(losses(folder)) == 3
    assert [line["step"] for line in read_lines(folder / "validation.jsonl")] == [0, 2, 3]
    scores = json.loads((folder / "evaluation.json").read_text())["hellaswag"]
    assert scores["before"]["n"] == scores["after"]["n"] == 6
    assert scores["after"]["loss"] < scores["before"]["loss"]
    # the exam asks for the loss of the very tokens that the validation batches teach
    assert scores["before"]["loss"] == pytest.approx(read_lines(folder / "validation.jsonl")[0]["loss"], rel=1e-4)
    shown = capsys.readouterr().out
    for expected in ("a note of the reader", "random weights", "40 training rows from", "trainable", "step 3/3", "→"):
        assert expected in shown
    assert shown.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert [place.name for place in (folder / "checkpoints").iterdir()] == ["step-000002"]


def test_what_a_run_leaves_is_where_the_next_one_starts(recipe, tmp_path):
    first = train(recipe(run_dir=str(tmp_path / "one")))
    weights = {"weights": str(first / "model"), "dtype": "bf16"}
    second = train(recipe(run_dir=str(tmp_path / "two"), model=weights, batch__pack=True))
    before = [read_lines(folder / "validation.jsonl") for folder in (first, second)]
    assert before[1][0]["loss"] == pytest.approx(before[0][-1]["loss"], abs=0.02)
    model = DeepseekV4ForCausalLM.from_pretrained(second / "model")
    assert model(torch.tensor([[0, 5, 6]])).logits.isfinite().all()


def test_the_seed_decides_everything(recipe, tmp_path):
    runs = [train(recipe(run_dir=str(tmp_path / str(i)), seed=seed)) for i, seed in enumerate((0, 0, 1))]
    assert losses(runs[0]) == losses(runs[1])
    assert losses(runs[0]) != losses(runs[2])
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


def test_exams_are_held_only_if_wanted(recipe):
    folder = train(recipe(evaluate={"before": False, "after": False, "limit": 3}))
    assert json.loads((folder / "evaluation.json").read_text()) == {"hellaswag": {"before": None, "after": None}}
    assert "Accuracy" not in (folder / "report.html").read_text(encoding="utf-8")


def test_a_second_run_into_the_same_folder_is_refused(recipe):
    folder = train(recipe())
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        train(recipe())
    assert (folder / "metrics.jsonl").read_bytes() == before


def bad_rows(tmp_path: Path) -> Path:
    rows = made_hellaswag(4)
    rows[2]["label"] = "7"
    (tmp_path / "rows").mkdir()
    for split in ("train", "validation"):
        write_rows(tmp_path / "rows" / f"{split}.jsonl", rows)
    return tmp_path / "rows"


def test_a_bad_row_is_found_before_the_model_is_built(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "build_model", lambda *_: pytest.fail("built a model"))
    with pytest.raises(ValueError, match="label '7'"):
        train(recipe(data__path=str(bad_rows(tmp_path))))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch__length": 8}, "more than batch.length 8"),
        ({"model": {"weights": "nowhere"}}, "nowhere is neither a folder nor a Hub id"),
        ({"model": {"preset": "pro"}}, "takes .* GB .*try --model.preset=tiny"),
    ],
)
def test_a_mistake_leaves_no_folder(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(recipe(**changes))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_training_keeps_what_was_written(recipe, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow.Trainer, "export", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted by Ctrl-C; .* stays in .*run"):
        train(recipe())
    folder = Path(recipe().run_dir)
    assert len(losses(folder)) == 3
    assert not (folder / "model").exists()


def test_ctrl_c_before_the_first_step_leaves_no_folder(recipe, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "hold_exam", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(recipe())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_smallest_preset_learns_real_rows(recipe, tmp_path):
    shared = Path(__file__).parents[3] / "shared" / "data" / "hellaswag"
    if not shared.is_dir():
        pytest.skip("the real HellaSwag is not here")
    small = {"global_size": 8, "micro_size": 8, "length": 512}
    folder = train(recipe(model={"preset": "tiny", "dtype": "fp32"}, data__path=str(shared), batch=small, steps=12))
    lines = read_lines(folder / "validation.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
