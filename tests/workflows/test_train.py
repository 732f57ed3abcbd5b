import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from seektune.checkpoint.files import TensorFiles
from seektune.data.chat_format.template import chat_template
from seektune.data.datasets.synthetic import made_hellaswag, write_rows
from seektune.io.jsonl import read_records
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.recipe.load import dump_recipe, load_recipe
from seektune.run.run_dir import held
from seektune.signals import Interrupted
from seektune.train import checkpoints, trainer
from seektune.workflows import train as workflow
from tests.checkpoint.reader import raw
from tests.conftest import DSPARK
from tests.patience import HUNG
from tests.places import HELLASWAG, ROOT
from tests.read_run import losses
from tests.run_cli import python
from tests.workflows.conftest import made_recipe


def train(recipe, name="run", notes=()):
    return workflow.train(recipe, name, notes, Path(recipe.run_dir or ROOT / "runs").parent / "cache")


@pytest.fixture(scope="module")
def finished_run(rows, config_file, tmp_path_factory):
    return train(made_recipe(rows, config_file, tmp_path_factory.mktemp("finished") / "run"))


@pytest.fixture
def finished(finished_run, tmp_path):
    """The run of `recipe()`, finished, moved to where that would write it."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture(scope="module")
def stopped_run(rows, config_file, tmp_path_factory):
    wanted = made_recipe(
        rows, config_file, tmp_path_factory.mktemp("stopped") / "run", steps=5, checkpoint={"every": 1}
    )
    with pytest.MonkeyPatch.context() as patch:
        stopped(wanted, patch, 3)
    return Path(wanted.run_dir)


@pytest.fixture
def stopped_after_3(stopped_run, recipe, tmp_path):
    """A run of five steps that was stopped in the third, moved, and its recipe."""
    shutil.copytree(stopped_run, tmp_path / "run")
    return recipe(steps=5, checkpoint={"every": 1})


@pytest.mark.slow
def test_a_run_leaves_everything(recipe, tmp_path, capsys):
    wanted = recipe(checkpoint={"every": 2}, logging__to=["tensorboard"], evaluate__tasks=["hellaswag", "validation"])
    folder = train(wanted, "toy", ("a note of the reader",))
    assert folder == tmp_path / "run"
    assert {item.name for item in folder.iterdir()} == {
        *("recipe.yaml", "metrics.jsonl", "validation.jsonl", "expert_loads.jsonl", "evaluation.json", "tensorboard"),
        *("loss.png", "report.html", "report.json", "checkpoints", "model"),
    }
    assert load_recipe(folder / "recipe.yaml") == wanted
    assert (folder / "model" / "chat_template.jinja").read_text(encoding="utf-8") == chat_template("preview")
    card = ModelCard.load(folder / "model" / "README.md", ignore_metadata_errors=False)
    assert [each.metric_type for each in card.data.eval_results] == [
        "acc",
        "acc_norm",
        "loss",
        "perplexity",
        "accuracy",
    ]
    assert len(losses(folder)) == 3
    assert [line["step"] for line in read_records(folder / "validation.jsonl")] == [0, 2, 3]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert list(evaluation) == ["hellaswag", "validation"]
    scores = evaluation["hellaswag"]
    assert scores["before"]["n"] == scores["after"]["n"] == 6
    assert scores["after"]["loss"] < scores["before"]["loss"]
    # the exam asks for the loss of the very tokens that the validation batches teach
    assert scores["before"]["loss"] == pytest.approx(read_records(folder / "validation.jsonl")[0]["loss"], rel=1e-4)
    held_out = [evaluation["validation"][when]["loss"]["value"] for when in ("before", "after")]
    lines = read_records(folder / "validation.jsonl")
    assert held_out == pytest.approx([lines[0]["loss"], lines[-1]["loss"]], rel=1e-9)
    shown = capsys.readouterr().out
    for expected in ("a note of the reader", "random weights", "40 training rows from", "trainable", "step 3/3", "→"):
        assert expected in shown
    assert shown.splitlines()[-1] == f"report: {folder / 'report.html'}"
    # six questions cannot tell two models apart
    assert len(re.findall(r"HellaSwag acc(?:_norm)?: .* → .*, p = [01]", shown)) == 2
    assert len(re.findall(r"validation (?:perplexity|next-token accuracy): .* → .*", shown)) == 2
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "(McNemar, exact)" in report
    assert "<h2>Validation</h2>" in report
    assert sorted(place.name for place in (folder / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


@pytest.mark.slow
def test_what_a_run_leaves_is_where_the_next_one_starts(recipe, tmp_path):
    first = train(recipe(run_dir=str(tmp_path / "one")))
    (first / "model" / "LICENSE").write_text("MIT")
    (first / "model" / "chat_template.jinja").write_text("the base's own")
    weights = {"weights": str(first / "model"), "dtype": "bf16"}
    second = train(recipe(run_dir=str(tmp_path / "two"), model=weights, batch__pack=True))
    assert (second / "model" / "LICENSE").read_text() == "MIT"
    assert (second / "model" / "chat_template.jinja").read_text() == "the base's own"
    before = [read_records(folder / "validation.jsonl") for folder in (first, second)]
    assert before[1][0]["loss"] == pytest.approx(before[0][-1]["loss"], abs=0.02)
    model = DeepseekV4ForCausalLM.from_pretrained(second / "model")
    assert model(torch.tensor([[0, 5, 6]])).logits.isfinite().all()


@pytest.mark.slow
def test_the_seed_decides_everything(recipe, tmp_path):
    runs = [train(recipe(run_dir=str(tmp_path / str(i)), seed=seed)) for i, seed in enumerate((0, 0, 1))]
    assert losses(runs[0]) == losses(runs[1])
    assert losses(runs[0]) != losses(runs[2])
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_exams_are_held_only_if_wanted(recipe):
    folder = train(recipe(evaluate={"before": False, "after": False, "limit": 3}))
    assert json.loads((folder / "evaluation.json").read_text()) == {}
    assert "95 % interval" not in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(recipe, finished, capsys):
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    assert train(recipe()) == finished
    assert "finished" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": "no"}, "already holds a run"),
        ({"seed": 5}, "holds a run with another seed"),
        ({"steps": 2}, "fewer than before"),
        ({"resume": "elsewhere"}, "resume elsewhere is no folder"),
    ],
)
def test_the_folder_of_another_run_is_refused(recipe, finished, changes, message):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message):
        train(recipe(**changes))
    assert (finished / "metrics.jsonl").read_bytes() == before


def stopped(recipe, monkeypatch, step):
    """A run that SIGTERM stopped in a step."""
    train_step = trainer.train_step

    def signalling(*arguments):
        if arguments[3] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*arguments)

    monkeypatch.setattr(trainer, "train_step", signalling)
    with pytest.raises(Interrupted, match=rf"stopped by SIGTERM; saved in .*step-00000{step}; the same command"):
        train(recipe)
    monkeypatch.undo()


@pytest.mark.slow
def test_the_same_command_goes_on_to_the_same_end(recipe, tmp_path, monkeypatch, capsys):
    whole = train(recipe(run_dir=str(tmp_path / "whole"), steps=5))
    wanted = recipe(steps=5)
    stopped(wanted, monkeypatch, 2)
    folder = train(wanted)
    assert "resuming after step 2" in capsys.readouterr().out
    assert losses(folder) == losses(whole)
    for name in ("validation.jsonl", "evaluation.json", "model/model.safetensors", "expert_loads.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@contextmanager
def another_byte(folder: Path, name: str) -> Iterator[None]:
    """A tensor is another one meanwhile, of the same shape."""
    place, start, _ = TensorFiles(folder).location(name)
    before = place.read_bytes()
    place.write_bytes(before[:start] + bytes([before[start] ^ 1]) + before[start + 1 :])
    yield
    place.write_bytes(before)


@pytest.mark.slow
def test_a_resumed_run_carries_the_stages_of_its_base(recipe, toy_model, tmp_path, monkeypatch):
    base = tmp_path / "base"
    sizes = {"vocab_size": 512, "hidden_size": 64, "moe_intermediate_size": 32}
    toy_model(torch.float32, drafter=True, **DSPARK, **sizes).save_pretrained(base, format="released")
    wanted = recipe(
        model={"weights": str(base), "dtype": "fp32"}, loss={"mtp_weight": 0}, evaluate__tasks=None, steps=3
    )
    stopped(wanted, monkeypatch, 2)
    with another_byte(base, "mtp.0.main_norm.weight"), pytest.raises(ValueError, match="began with other DSpark"):
        train(wanted)
    folder = train(wanted)
    model = folder / "model"
    scores = json.loads((folder / "evaluation.json").read_text())["drafter"]
    assert 1 <= scores["before"]["accepted_length"]["value"] <= 6
    assert scores["after"]["n"] == 6
    report = (folder / "report.html").read_text()
    assert "tokens per step" in report
    assert "the DSpark stages propose 5 tokens at a time" in report
    before = raw(base)
    after = raw(model)
    assert after.keys() >= {name for name in before if name.startswith("mtp.")}
    assert all(after[name] == value for name, value in before.items() if name.startswith("mtp."))
    assert after["head.weight"] != before["head.weight"]
    assert DeepseekV4Config.from_pretrained(model).dspark_stages == 3


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_finished_one(recipe, finished):
    folder = train(recipe(steps=6))
    assert folder == finished
    assert [line["step"] for line in read_records(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_another_folder_can_start_from_a_checkpoint(recipe, stopped_after_3, tmp_path, capsys):
    changes = {"resume": stopped_after_3.run_dir, "run_dir": str(tmp_path / "other"), "optimizer": {"lr": 1e-4}}
    folder = train(recipe(steps=5, **changes))
    assert [line["step"] for line in read_records(folder / "metrics.jsonl")] == [4, 5]
    assert "note: optimizer.lr is not what it was" in capsys.readouterr().out


def truncate(folder):
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder):
    file = next(folder.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)


def lose(folder):
    (folder / "state.json").unlink()


def add(folder):
    (folder / "foreign.bin").write_bytes(b"x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "bytes, .* were written"),
        (flip, "checksum is not the one"),
        (lose, "state.json is missing"),
        (add, "foreign.bin does not belong"),
    ],
)
def test_a_damaged_checkpoint_is_found_and_an_older_one_offered(stopped_after_3, monkeypatch, harm, message):
    wanted = stopped_after_3
    places = Path(wanted.run_dir) / "checkpoints"
    harm(places / "step-000003")
    monkeypatch.setattr(workflow, "build_model", lambda *_, **__: pytest.fail("built a model"))
    with pytest.raises(ValueError, match=message) as caught:
        train(wanted)
    older = places / "step-000002"
    assert str(caught.value).endswith(f"the checkpoint before is whole: --resume={older}")
    monkeypatch.undo()
    folder = train(wanted.model_copy(update={"resume": str(older)}))
    assert [line["step"] for line in read_records(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_run_that_died_before_its_first_checkpoint_starts_anew(recipe, monkeypatch, capsys):
    monkeypatch.setattr(trainer.Trainer, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        train(recipe())
    monkeypatch.undo()
    folder = train(recipe())
    assert "without a checkpoint: it starts anew" in capsys.readouterr().out
    assert [line["step"] for line in read_records(folder / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.slow
def test_a_finished_run_without_its_checkpoints_is_still_finished(recipe, finished, capsys):
    shutil.rmtree(finished / "checkpoints")
    train(recipe())
    assert "finished" in capsys.readouterr().out.splitlines()[-1]
    assert not (finished / "checkpoints").exists()


def test_weights_that_are_not_there_are_missed_before_any_data_is_fetched(recipe, monkeypatch):
    monkeypatch.setattr(workflow, "prepare_data", lambda *_: pytest.fail("fetched the data"))
    for changes, message in (
        ({"weights": "/nowhere/at/all"}, "model.weights: "),
        ({"preset": "pro"}, "rank 0 needs .* GB too much"),
    ):
        with pytest.raises(ValueError, match=message):
            train(recipe(model=changes))


def bad_rows(tmp_path: Path) -> Path:
    rows = made_hellaswag(4)
    rows[2]["label"] = "7"
    (tmp_path / "rows").mkdir()
    for split in ("train", "validation"):
        write_rows(tmp_path / "rows" / f"{split}.jsonl", rows)
    return tmp_path / "rows"


def test_a_bad_row_is_found_before_the_model_is_built(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "build_model", lambda *_, **__: pytest.fail("built a model"))
    with pytest.raises(ValueError, match="label '7'"):
        train(recipe(data__path=str(bad_rows(tmp_path))))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch__length": 8}, "more than batch.length 8"),
        ({"model": {"weights": "nowhere"}}, "nowhere is neither a folder nor a Hub id"),
        ({"model": {"preset": "pro"}}, "does not fit: .* GB .*--model.preset=tiny"),
    ],
)
def test_a_mistake_leaves_no_folder(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(recipe(**changes))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_signal_before_the_first_step_leaves_no_folder(recipe, tmp_path, monkeypatch):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(workflow, "run_eval", interrupt)
    with pytest.raises(Interrupted, match="stopped by SIGTERM before the first step"):
        train(recipe())
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.slow
def test_a_signal_in_the_last_exam_costs_no_training(recipe, monkeypatch):
    exam = workflow.run_eval

    def interrupted(wanted, when, *rest):
        if when == "after":
            os.kill(os.getpid(), signal.SIGINT)
        return exam(wanted, when, *rest)

    monkeypatch.setattr(workflow, "run_eval", interrupted)
    with pytest.raises(Interrupted, match=r"stopped by SIGINT; saved in .*step-000003"):
        train(recipe())
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "train_step", lambda *_: pytest.fail("trained again"))
    folder = train(recipe())
    assert (folder / "report.html").exists()
    assert json.loads((folder / "evaluation.json").read_text())["hellaswag"]["before"]["n"] == 6


@pytest.mark.slow
def test_the_smallest_preset_learns_real_rows(recipe, tmp_path):
    if not HELLASWAG.is_dir():
        pytest.skip("the real HellaSwag is not here")
    small = {"global_size": 8, "micro_size": 8, "length": 512}
    folder = train(recipe(model={"preset": "tiny", "dtype": "fp32"}, data__path=str(HELLASWAG), batch=small, steps=12))
    lines = read_records(folder / "validation.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5


def stopped_in_validation(recipe, monkeypatch, step):
    """A run that SIGTERM stopped in the validation after a step."""
    validate = trainer.Trainer._validate_if_due

    def signalling(self, *rest):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        validate(self, *rest)

    monkeypatch.setattr(trainer.Trainer, "_validate_if_due", signalling)
    with pytest.raises(Interrupted):
        train(recipe)
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
def test_a_longer_run_is_not_finished_because_the_shorter_one_was(recipe, monkeypatch):
    stopped_in_validation(recipe(steps=5), monkeypatch, 5)
    folder = train(recipe(steps=5))
    state = load_state(folder / "checkpoints" / "step-000005")
    assert torch.equal(DeepseekV4ForCausalLM.from_pretrained(folder / "model").state_dict()["head.weight"], state)


def load_state(checkpoint: Path) -> torch.Tensor:
    with safe_open(next(checkpoint.glob("*.safetensors")), framework="pt") as file:
        return file.get_tensor("model.head.weight").bfloat16()


@pytest.mark.slow
def test_a_run_that_goes_back_leaves_the_course_it_was_on(recipe, monkeypatch, capsys):
    folder = train(recipe(steps=5, checkpoint={"every": 1, "keep_last": 9}))
    older = folder / "checkpoints" / "step-000002"
    back = recipe(steps=5, checkpoint={"every": 4}, resume=str(older), optimizer={"lr": 1e-4})
    stopped(back, monkeypatch, 3)
    shown = capsys.readouterr().out
    assert "note: resuming after step 2; this later checkpoint is set aside" in shown
    names = {place.name for place in (folder / "checkpoints").iterdir()}
    assert names == {"step-000002", "step-000003", *(f"step-00000{step}.left" for step in (3, 4, 5))}
    # the same words are a call to go on, not to go back once more
    train(back)
    assert "resuming after step 3" in capsys.readouterr().out
    lines = read_records(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[-1]["lr"] < 1e-4


@pytest.mark.slow
def test_a_run_that_began_from_another_goes_on_with_the_same_words(recipe, finished, tmp_path, monkeypatch, capsys):
    wanted = recipe(steps=6, resume=str(finished), run_dir=str(tmp_path / "other"))
    stopped(wanted, monkeypatch, 5)
    folder = train(wanted)
    assert "resuming after step 5" in capsys.readouterr().out
    assert [line["step"] for line in read_records(folder / "metrics.jsonl")] == [4, 5, 6]


@pytest.mark.slow
def test_a_checkpoint_may_have_any_name(recipe, finished, tmp_path):
    (finished / "checkpoints" / "step-000003").rename(tmp_path / "best")
    folder = train(recipe(steps=4, resume=str(tmp_path / "best"), run_dir=str(tmp_path / "other")))
    assert [line["step"] for line in read_records(folder / "metrics.jsonl")] == [4]
    best = {"resume": str(tmp_path / "best"), "run_dir": str(tmp_path / "third")}
    with pytest.raises(ValueError, match="best is after step 3, but steps is 2; raise steps, or resume an older one"):
        train(recipe(steps=2, **best))
    with pytest.raises(ValueError, match="holds the state of the optimizer adamw, which muon cannot use"):
        train(recipe(steps=4, **best, optimizer={"name": "muon"}))
    assert not (tmp_path / "third").exists()


@pytest.mark.slow
def test_the_checkpoint_of_another_run_is_not_taken_for_ones_own(recipe, stopped_after_3, tmp_path):
    other = train(recipe(run_dir=str(tmp_path / "other"), seed=7, steps=4))
    shutil.copytree(other / "checkpoints" / "step-000004", tmp_path / "run" / "checkpoints" / "step-000004")
    with pytest.raises(ValueError, match=r"step-000004 is of a run with another seed; start from it all the same"):
        train(stopped_after_3)


@pytest.mark.slow
def test_other_rows_under_the_same_path_are_refused_and_nothing_is_touched(recipe, tmp_path, monkeypatch):
    path = tmp_path / "rows"
    path.mkdir()
    for split in ("train", "validation"):
        write_rows(path / f"{split}.jsonl", made_hellaswag(8, seed=1))
    wanted = recipe(steps=5, data__path=str(path))
    stopped(wanted, monkeypatch, 2)
    folder = Path(wanted.run_dir)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    write_rows(path / "train.jsonl", made_hellaswag(8, seed=2))
    with pytest.raises(ValueError, match=r"step-000002 was trained on other rows: data\.path holds something else"):
        train(wanted.model_copy(update={"resume": str(folder / "checkpoints" / "step-000002")}))
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_a_checkpoint_that_does_not_say_where_it_stood_is_refused(stopped_after_3):
    wanted = stopped_after_3
    checkpoint = Path(wanted.run_dir) / "checkpoints" / "step-000003"
    facts = json.loads((checkpoint / "state.json").read_text())
    steps = "step is .*, not a whole number from 0 to 5"
    wrong: list[tuple[dict[str, object], str]] = [
        ({"step": -7}, steps),
        ({"step": 6}, steps),
        ({"step": 10**400}, steps),
        ({"step": "x"}, steps),
        ({"step": True}, steps),
        ({"step": None}, steps),
        ({"recipe": {**facts["recipe"], "steps": "x"}}, "steps is 'x', not a whole number"),
        ({"stream": {**facts["stream"], "position": -1}}, "position is -1, not a whole number from 0"),
        ({"stream": {**facts["stream"], "row": 0.5}}, "row is 0.5, not a whole number"),
        ({"stream": []}, "examples is None, not a list"),
        ({"guard": {"recent": "x", "skipped": 0}}, "recent losses are not a list of numbers"),
        ({"guard": {"recent": [], "skipped": -1}}, "skipped is -1, not a whole number"),
        ({"log": {"total_tokens": "x", "loads": {}}}, "total_tokens is 'x', not a whole number"),
        ({"log": {"total_tokens": 1, "loads": {"a": 1}}}, "expert loads are not a list"),
    ]
    changed = [({name: value for name, value in facts.items() if name != "guard"}, "it lacks guard")]
    changed += [({name: value for name, value in facts.items() if name != "recipe"}, "does not say of which recipe")]
    changed += [(facts | change, f"step-000003 cannot be resumed: its {message}") for change, message in wrong]
    for values, message in changed:
        text = json.dumps(values)
        (checkpoint / "state.json").write_text(text)
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=message):
            train(wanted)


def test_two_processes_do_not_train_in_one_folder(recipe, tmp_path):
    with held(tmp_path / "run"), pytest.raises(ValueError, match="another process trains there"):
        train(recipe())


@pytest.mark.slow
def test_weights_are_saved_where_the_last_state_finds_no_room(recipe, finished_run, monkeypatch):
    def full(folder, tensors, facts, group):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_train_state", full)
    with pytest.raises(OSError, match=r"step-000003: No space left .*; the trained weights are in .*run/model"):
        train(recipe())
    runs = finished_run, Path(recipe().run_dir)
    exported = [(folder / "model" / "model.safetensors").read_bytes() for folder in runs]
    assert exported[0] == exported[1]


@pytest.mark.slow
def test_what_a_killed_export_left_is_in_nobodys_way(recipe, monkeypatch):
    exam = workflow.run_eval
    monkeypatch.setattr(
        workflow, "run_eval", lambda *given: pytest.fail("ends") if given[1] == "after" else exam(*given)
    )
    with pytest.raises(pytest.fail.Exception):
        train(recipe())
    monkeypatch.undo()
    folder = Path(recipe().run_dir)
    for left in (".model.old", ".model.abc.partial"):
        (folder / left).mkdir()
        (folder / left / "weights").touch()
    train(recipe())
    assert not [place.name for place in folder.iterdir() if place.name.startswith(".")]


STARTING = """
import importlib.abc, os, signal, sys
class Signalling(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{name})
        if name == "matplotlib":
            print("what draws is imported before anything is drawn", flush=True)
sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Signalling())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
sys.argv = ["seektune", "train", {recipe!r}]
from seektune.cli import main
main()
"""


def says_resume_me(ended: subprocess.CompletedProcess[str], name: str) -> bool:
    said = f"seektune: stopped by {name} while starting; run the same command again\n"
    return (ended.returncode, ended.stderr) == (75, said)


@pytest.mark.slow
def test_a_signal_while_torch_is_loaded_says_resume_me(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe()))
    code = STARTING.format(module="torch", name="SIGTERM", recipe=str(tmp_path / "recipe.yaml"))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=HUNG)
    assert says_resume_me(ended, "SIGTERM")
    assert ended.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_while_training_code_is_loaded_says_resume_me(recipe, tmp_path, name):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe()))
    code = STARTING.format(module="seektune.workflows.train", name=name, recipe=str(tmp_path / "recipe.yaml"))
    assert says_resume_me(python(code), name)
    assert not (tmp_path / "run").exists()


def test_the_base_of_a_run_is_not_where_its_result_goes(recipe, toy_model, tmp_path):
    base = tmp_path / "run" / "model"
    toy_model(torch.float32, vocab_size=512).save_pretrained(base)
    before = raw(base)
    with pytest.raises(ValueError, match=r"model\.weights .* is where this run writes its result"):
        train(recipe(model={"weights": str(base), "dtype": "fp32"}))
    assert raw(base) == before
