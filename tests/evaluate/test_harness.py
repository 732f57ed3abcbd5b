"""lm-evaluation-harness itself is the oracle: its tasks, its cleaning of rows and its metrics run on our models."""

import json
import math
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from seektune.data.datasets.synthetic import made_hellaswag
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.evaluate.choice_task import ChoiceTask
from seektune.evaluate.perplexity import PerplexityTask, Text, windows
from seektune.evaluate.task import TaskScore
from seektune.kernels import cpu
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.places import HELLASWAG
from tests.questions import read_split

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
MARKS = (" [title] ", " [step] ", "  ", "é ", " [a [b] c] ", "“q” ", ". ", "")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(2048)


@pytest.fixture(scope="module")
def model(toy_model: Callable[..., DeepseekV4ForCausalLM]) -> DeepseekV4ForCausalLM:
    shape = {"num_hidden_layers": 2, "compress_ratios": [4, 128, 0]}
    return toy_model(torch.float32, vocab_size=2048, **shape)


def odd_rows(count: int) -> list[dict[str, Any]]:
    """Made rows with everything that cleaning must take away or leave."""
    dice = random.Random(7)
    rows = made_hellaswag(count, seed=2)
    for row in rows:
        for column in ("activity_label", "ctx_a", "ctx_b"):
            row[column] = dice.choice(MARKS) + row[column].replace(" the ", f" the {dice.choice(MARKS)}")
        row["endings"] = [dice.choice(MARKS) + ending + dice.choice(MARKS) for ending in row["endings"]]
    return rows


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "validation.parquet")
    return folder


def harness_model(model: DeepseekV4ForCausalLM, tokenizer: Tokenizer, **options: Any) -> Any:
    """The model as the harness sees it, which takes seconds to import."""
    from seektune.evaluate.harness import HarnessModel

    return HarnessModel(model, tokenizer, **options)


def by_harness(task: dict[str, Any], folder: Path, model: Any) -> dict[str, Any]:
    """The harness's results and samples for a task that it reads from a file."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    file = folder / "task.yaml"
    file.write_text(yaml.safe_dump(task), encoding="utf-8")
    tasks = TaskManager(include_defaults=False)  # hundreds of others would have to be read
    found = lm_eval.simple_evaluate(model, tasks=[str(file)], task_manager=tasks, bootstrap_iters=0)
    (name,) = found["results"]
    return {"results": found["results"][name], "samples": found["samples"][name]}


def hellaswag(folder: Path) -> dict[str, Any]:
    """The harness's own task, with rows from a file instead of the Hub."""
    import lm_eval.tasks

    shipped = Path(lm_eval.tasks.__file__).parent / "hellaswag" / "hellaswag.yaml"
    files = dict.fromkeys(("train", "validation"), str(folder / "validation.parquet"))
    return {"include": str(shipped), "dataset_path": "parquet", "dataset_kwargs": {"data_files": files}}


def both(folder: Path, model: DeepseekV4ForCausalLM, tokenizer: Tokenizer) -> tuple[TaskScore, dict[str, Any]]:
    ours = ChoiceTask("hellaswag", "HellaSwag", read_split(folder, "validation")).run(model, tokenizer, 8192)
    return ours, by_harness(hellaswag(folder), folder, harness_model(model, tokenizer))


def assert_equal(ours: TaskScore, theirs: dict[str, Any]) -> None:
    assert ours.metrics["acc"].value == theirs["results"]["acc,none"]
    assert ours.metrics["acc_norm"].value == theirs["results"]["acc_norm,none"]
    answers = sorted(theirs["samples"], key=lambda sample: sample["doc_id"])
    assert ours.outcomes["right"] == "".join(str(int(sample["acc"])) for sample in answers)
    assert ours.outcomes["right_norm"] == "".join(str(int(sample["acc_norm"])) for sample in answers)


@pytest.mark.slow
def test_1024_made_rows_are_scored_as_the_harness_scores_them(
    tmp_path: Path, model: DeepseekV4ForCausalLM, tokenizer: Tokenizer
) -> None:
    ours, theirs = both(write(tmp_path, odd_rows(1024)), model, tokenizer)
    assert ours.n == 1024
    assert ours.outcomes["right"] != ours.outcomes["right_norm"]
    assert_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.skipif(not HELLASWAG.is_dir(), reason="the real HellaSwag is not here")
def test_1024_real_rows_are_scored_as_the_harness_scores_them(
    tmp_path: Path, model: DeepseekV4ForCausalLM, tokenizer: Tokenizer
) -> None:
    rows = pq.read_table(HELLASWAG / "validation.parquet").slice(0, 1024).to_pylist()
    ours, theirs = both(write(tmp_path, rows), model, tokenizer)
    assert ours.n == 1024
    assert_equal(ours, theirs)


def asked(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


@pytest.mark.slow
def test_a_likelihood_is_that_of_the_continuation_alone(model: DeepseekV4ForCausalLM, tokenizer: Tokenizer) -> None:
    harness = harness_model(model, tokenizer)
    requests = [asked("The man ", "walks"), asked("", "The"), asked("The", ""), asked("The man", " walks away")]
    found = harness.loglikelihood(requests)
    with torch.no_grad():
        for (log, greedy), (read, ending) in zip(
            found, [("The man", " walks"), ("", "The"), ("The", ""), ("The man", " walks away")], strict=True
        ):
            ids = [tokenizer.bos_id, *tokenizer.encode(read + ending)]
            start = 1 + len(tokenizer.encode(read))
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            steps = range(start, len(ids))
            assert log == pytest.approx(sum(float(log_p[t - 1, ids[t]]) for t in steps), abs=1e-4)
            assert greedy == all(int(log_p[t - 1].argmax()) == ids[t] for t in steps)


def test_what_is_too_long_loses_its_beginning(model: DeepseekV4ForCausalLM, tokenizer: Tokenizer) -> None:
    text = "The man picks up a red bucket and carries it to the old ladder"
    ids = [*tokenizer.encode(text), *tokenizer.encode(" again")]
    (log, _), (short, _) = (
        harness_model(model, tokenizer, max_length=size).loglikelihood([asked(text, " again")])[0]
        for size in (4096, 10)
    )
    with torch.no_grad():
        log_p = model(torch.tensor([ids[-11:]])).logits[0].log_softmax(-1)
    length = len(tokenizer.encode(" again"))
    expected = sum(float(log_p[10 - length + i, token]) for i, token in enumerate(ids[-length:]))
    assert short == pytest.approx(expected, abs=1e-4)
    assert short != pytest.approx(log, abs=1e-3)


@pytest.mark.parametrize("size", [0, 1, 5, 8, 9, 16, 21])
def test_windows_are_those_of_the_harness(size: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokens = list(range(100, 100 + size))
    theirs = [make_disjoint_window(pair) for pair in get_rolling_token_windows(tokens, 0, 8, 1)]
    assert [pair for pair in windows(tokens, 0, 8, 8) if pair[1]] == theirs


def test_whole_texts_have_the_likelihood_that_perplexity_finds(
    model: DeepseekV4ForCausalLM, tokenizer: Tokenizer
) -> None:
    texts = ["The man picks up a red bucket and walks away.", "B", ""]
    harness = harness_model(model, tokenizer, max_length=8)
    found = harness.loglikelihood_rolling([asked(text) for text in texts])
    for text, log in zip(texts[:2], found, strict=False):
        score = PerplexityTask([Text(text, "x")], 8, 8).run(model, tokenizer, 8192)
        assert log == pytest.approx(-math.fsum(score.outcomes["losses"]), rel=1e-6)
    assert found[2] == 0


@pytest.mark.slow
def test_a_task_of_whole_texts_runs(tmp_path: Path, model: DeepseekV4ForCausalLM, tokenizer: Tokenizer) -> None:
    texts = [f"{row['ctx']} and walks away." for row in made_hellaswag(6)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    task = {
        "task": "texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "t.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    theirs = by_harness(task, tmp_path, harness_model(model, tokenizer))["results"]["bits_per_byte,none"]
    ours = PerplexityTask([Text(text, "x") for text in texts], 4096, 4096).run(model, tokenizer, 8192)
    assert ours.metrics["bits_per_byte"].value == pytest.approx(theirs, rel=1e-6)


def test_generation_is_greedy_and_stops(
    model: DeepseekV4ForCausalLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an evaluation may not depend on whether there is a C++ compiler
    monkeypatch.setattr(cpu, "call", lambda name, *rest: pytest.fail(f"CPU kernel {name} in an evaluation"))
    harness = harness_model(model, tokenizer, max_length=64)
    (whole,) = harness.generate_until([asked("The man", {"until": [], "max_gen_toks": 6})])
    ids = [tokenizer.bos_id, *tokenizer.encode("The man")]
    for _ in range(6):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert whole == tokenizer.decode(ids[-6:])
    stop = whole[3:5]
    (cut,) = harness.generate_until([asked("The man", {"until": [stop, ""], "max_gen_toks": 6})])
    assert cut == whole[: whole.index(stop)]
    with pytest.raises(ValueError, match="generation is greedy"):
        harness.generate_until([asked("The man", {"do_sample": True, "temperature": 1.0})])
    with pytest.raises(ValueError, match="max_gen_toks 64 must be less than max_length 64"):
        harness.generate_until([asked("The man", {"until": ["x"], "max_gen_toks": 64})])


def test_generation_ends_with_eos(
    model: DeepseekV4ForCausalLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = harness_model(model, tokenizer)
    (whole,) = harness.generate_until([asked("The man", {"until": [], "max_gen_toks": 5})])
    first = int(model(torch.tensor([[tokenizer.bos_id, *tokenizer.encode("The man")]])).logits[0, -1].argmax())
    monkeypatch.setattr(Tokenizer, "eos_id", first)
    assert whole != ""
    assert harness.generate_until([asked("The man", {"until": [], "max_gen_toks": 5})]) == [""]
