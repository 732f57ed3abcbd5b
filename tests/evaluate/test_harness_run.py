"""Tasks of lm-evaluation-harness in `eval`: several, compared, broken off, as conversations, and written down."""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from seektune.data.chat_format.encode import encode_messages
from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate.harness_run import HarnessOptions, HarnessRun
from seektune.evaluate.harness_scores import HarnessResults
from seektune.evaluate.task import TaskInfo, TaskScore
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows.evaluate import EvalOptions, evaluate

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
WORDS = ("walks", "barks", "sings", "sleeps")
ROWS = [{"text": f"The {WORDS[i % 4][:-1]}er {i}", "right": i % 3 % 2} for i in range(10)]


@pytest.fixture(scope="module")
def models(
    toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    shape = {"num_hidden_layers": 2, "compress_ratios": [4, 128, 0]}
    for seed in (0, 1):
        toy_model(torch.float32, vocab_size=512, seed=seed, **shape).save_pretrained(folder / str(seed), format="fp32")
    return folder / "0", folder / "1"


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tasks, and the group `both` of two of them, which the harness knows by name."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows), "train": str(rows)}},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "{{text}}",
    }
    choice = {
        "task": "choice",
        "output_type": "multiple_choice",
        "doc_to_target": "right",
        "doc_to_choice": [*WORDS[:2]],
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    writing = {
        "task": "writing",
        "output_type": "generate_until",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }
    writer = {
        "task": "writer",
        "output_type": "loglikelihood",
        "doc_to_target": " walks",
        "metric_list": [{"metric": "perplexity"}],
    }
    group = {"group": "both", "task": ["twin", "sleeper"], "aggregate_metric_list": [{"metric": "acc"}]}
    loose = {"group": "loose", "task": ["both", "choice"]}
    twin = {**choice, "task": "twin", "doc_to_choice": [*WORDS[2:]]}
    sleeper = {**twin, "task": "sleeper", "doc_to_choice": [WORDS[3], WORDS[0]]}
    for task in (choice, writing, writer, twin, sleeper):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}), encoding="utf-8")
    for each in (group, loose):
        (folder / f"{each['group']}.yaml").write_text(yaml.safe_dump(each), encoding="utf-8")
    # without the index of thousands of shipped tasks
    manager = partial(TaskManager, include_path=str(folder), include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return folder


@pytest.mark.slow
def test_several_tasks_are_compared_example_by_example(
    tasks: Path, models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = EvalOptions(harness=HarnessOptions(output_path=tmp_path / "results"), limit=8)
    names = ["lm_eval:choice", "both", f"{tasks}/writing.yaml"]
    evaluate(str(models[0]), names, None, tmp_path / "cache", options, str(models[1]), as_json=True)
    found = json.loads(capsys.readouterr().out)["tasks"]
    assert [*found] == ["choice", "both", "writing"]
    choice = found["choice"]
    assert (choice["n"], found["both"]["n"], len(choice["acc_outcomes"])) == (8, 16, 8)
    other = choice["against"]
    ours = [int(sign) for sign in choice["acc_outcomes"]]
    theirs = [int(sign) for sign in other["acc_outcomes"]]
    assert choice["acc"]["value"] == sum(ours) / 8
    assert other["difference"]["acc"]["difference"] == pytest.approx((sum(ours) - sum(theirs)) / 8)
    assert found["both"]["acc"]["value"] == pytest.approx(sum(map(int, found["both"]["acc_outcomes"])) / 16)
    # the harness's own files, one for each model
    written = [json.loads(file.read_text("utf-8")) for file in sorted((tmp_path / "results").rglob("results_*.json"))]
    assert sorted(each["results"]["choice"]["acc,none"] for each in written) == sorted(
        [choice["acc"]["value"], other["acc"]["value"]]
    )
    assert len([*(tmp_path / "results").rglob("samples_writing_*.jsonl")]) == 2
    # finished answers are not kept, and a second run computes the same
    assert not [*(tmp_path / "cache" / "evaluations").iterdir()]
    evaluate(str(models[0]), names[:1], None, tmp_path / "cache", EvalOptions(limit=8), None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["examples:", "8"]
    assert lines[1].startswith(f"acc:            {choice['acc']['value']:.4f} (")


@pytest.mark.slow
def test_a_broken_off_evaluation_continues_with_its_answers(
    tasks: Path, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from seektune.evaluate import harness as harness_module  # imports lm_eval, which takes seconds

    evaluate(str(models[0]), ["choice"], None, tmp_path / "other", EvalOptions(), None, as_json=True)
    expected = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(harness_module, "PART", 4)
    calls: list[int] = []
    plain = harness_module.likelihoods

    def counted(model: Any, sequences: Any, *rest: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(sequences))
        return plain(model, sequences, *rest)

    monkeypatch.setattr(harness_module, "likelihoods", counted)
    ask = partial(evaluate, str(models[0]), ["choice"], None, tmp_path, EvalOptions(), None, as_json=True)
    with pytest.raises(KeyboardInterrupt):
        ask()
    calls.clear()
    monkeypatch.setattr(harness_module, "likelihoods", lambda *given: calls.append(len(given[1])) or plain(*given))
    capsys.readouterr()
    ask()
    assert json.loads(capsys.readouterr().out) == expected
    assert sum(calls) == 2 * len(ROWS) - 8
    # another model has other answers
    calls.clear()
    evaluate(str(models[1]), ["choice"], None, tmp_path, EvalOptions(), None, as_json=True)
    assert sum(calls) == 2 * len(ROWS)


def test_conversations_have_the_bytes_of_the_chat_format(toy_model: Callable[..., DeepseekV4ForCausalLM]) -> None:
    from seektune.evaluate.harness import HarnessModel

    tokenizer = load_tokenizer(512)
    model = HarnessModel(toy_model(torch.float32, vocab_size=512), tokenizer)
    turns = [
        {"role": "user", "content": "The <｜User｜> man"},
        {"role": "assistant", "content": "walks"},
        {"role": "user", "content": "A dog"},
    ]
    text = model.apply_chat_template(turns)
    assert text == encode_messages(turns)
    ((context, ending),) = model._encoded([(text, "barks")])
    assert tokenizer.decode(context) == text
    assert context.count(tokenizer.control_id("<｜User｜>")) == 2, "the one that is spelled out is plain characters"
    assert context.count(tokenizer.bos_id) == 1
    assert ending == tokenizer.encode("barks")
    open_answer = [*turns, {"role": "assistant", "content": "It is"}]
    text = model.apply_chat_template(open_answer, add_generation_prompt=False)
    assert text == encode_messages(turns) + "It is"
    assert model._request(text, {"until": ["\n"], "max_gen_toks": 4}).prompt[-2:] == tokenizer.encode("It is")[-2:]


@pytest.mark.slow
def test_solved_examples_are_earlier_turns(
    tasks: Path, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from seektune.evaluate.harness import HarnessModel

    read: list[str] = []
    plain = HarnessModel._encoded
    monkeypatch.setattr(
        HarnessModel, "_encoded", lambda self, pairs: read.extend(pair[0] for pair in pairs) or plain(self, pairs)
    )
    run = HarnessRun.of(["choice"], HarnessOptions(1, 2, apply_chat_template=True), "")
    found = run.run(DeepseekV4ForCausalLM.from_pretrained(models[0]), load_tokenizer(512), 8192)
    solved = [
        turn
        for row in ROWS[:2]
        for turn in (
            {"role": "user", "content": row["text"]},
            {"role": "assistant", "content": WORDS[row["right"]]},
        )
    ]
    assert set(read) == {encode_messages([*solved, {"role": "user", "content": ROWS[0]["text"]}])}
    assert found.raw["n-shot"]["choice"] == 2


@pytest.mark.slow
def test_resampling_leaves_processes_random_numbers_and_standard_output_alone(
    tasks: Path,
    toy_model: Callable[..., DeepseekV4ForCausalLM],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("multiprocessing.Pool", None)
    monkeypatch.setenv("DISABLE_MULTIPROC", "")
    run = HarnessRun.of(["writer"], HarnessOptions(), "")
    model = toy_model(torch.float32, vocab_size=512, num_hidden_layers=2, compress_ratios=[4, 128, 0])
    random_numbers = torch.get_rng_state()
    found = run.run(model, load_tokenizer(512), 8192)
    perplexity = found.score("writer", "writer").metrics["perplexity"]
    assert perplexity.low < perplexity.value < perplexity.high
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert os.environ["DISABLE_MULTIPROC"] == ""
    assert capsys.readouterr().out == ""


def test_a_score_that_is_read_back_has_its_metrics() -> None:
    values = {"acc": {"value": 0.5, "low": 0.1, "high": 0.9}, "n": 2, "acc_outcomes": "10"}
    info = TaskInfo("x", "x", "examples", "", "", {})
    score = TaskScore.from_dict(info, values)
    assert score.to_dict() == values
    assert [label for label, _ in score.lines()] == ["acc"]
    assert score.since(score)["acc"].difference == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["nothing"], "--task nothing: lm-evaluation-harness has no task of this name; the others are hellaswag, perp"),
        (["nowhere.yaml"], "--task nowhere.yaml: no such file"),
        (["twin", "both"], "twin and both both have the task twin; name one of them"),
    ],
)
def test_unknown_names_are_told_before_a_model_is_read(
    tasks: Path, tmp_path: Path, names: list[str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        evaluate("no model", names, None, tmp_path, EvalOptions(), None, as_json=True)


def test_a_group_that_has_no_score_stands_for_its_tasks(tasks: Path) -> None:
    names = HarnessRun.of(["loose"], HarnessOptions(), "").names
    assert {name: set(each) for name, each in names.items()} == {"loose": {"twin", "sleeper", "choice"}}
    assert HarnessRun.of(["both"], HarnessOptions(), "").names == {"both": ["both"]}


def test_values_that_are_not_finite_are_left_out() -> None:
    results = {"nll,none": math.nan, "nll_stderr,none": 0.1, "acc,none": 0.5, "acc_stderr,none": math.nan}
    samples = [{"doc_id": i, "filter": "none", "nll": math.nan, "acc": float(i)} for i in range(2)]
    raw = {"results": {"t": results}, "n-samples": {"t": {"effective": 2}}, "samples": {"t": samples}}
    score = HarnessResults(raw).score("t", "t")
    assert score.to_dict() == {"acc": {"value": 0.5, "low": 0.5, "high": 0.5}, "n": 2, "acc_outcomes": "01"}


def test_the_folder_of_results_is_no_file(tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    options = EvalOptions(harness=HarnessOptions(output_path=tmp_path / "file"))
    with pytest.raises(ValueError, match="file is a file; results of the harness need a folder"):
        evaluate("no model", ["choice"], None, tmp_path, options, None, as_json=True)
