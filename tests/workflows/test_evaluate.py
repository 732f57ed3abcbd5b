"""`seektune eval`: the numbers of the exams, shown with intervals and compared with another model's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.data.datasets.dataset import spread_evenly
from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate.choice_task import ChoiceTask
from seektune.evaluate.harness_run import HarnessOptions
from seektune.evaluate.perplexity import PerplexityTask, read_texts
from seektune.generate.session import LoadOptions
from seektune.lora.files import save_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.state import adapter_state
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows import evaluate as workflow
from seektune.workflows.evaluate import EvalOptions, evaluate
from tests.questions import read_split
from tests.run_cli import seektune


@pytest.fixture(scope="module")
def models(
    toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two models of one shape, in two formats."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed, form in (("one", 0, "fp32"), ("two", 1, "bf16")):
        toy_model(torch.float32, vocab_size=512, seed=seed).save_pretrained(folder / name, format=form)
    return folder / "one", folder / "two"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The man picks up a red bucket and walks away.\n" * 9, encoding="utf-8")
    return file


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Hold an exam; its output, as values if it is JSON."""

    def hold(model: Path, task: str, data: Path | None, as_json: bool = True, **more: Any) -> Any:
        against = more.pop("against", None)
        evaluate(str(model), task.split(","), data, tmp_path, EvalOptions(**more), against and str(against), as_json)
        said = capsys.readouterr()
        assert all(line.startswith("KV cache: ") for line in said.err.splitlines())
        assert "tokens of context fit" in said.err
        return json.loads(said.out) if as_json else said.out.splitlines()

    return hold


@pytest.mark.slow
def test_hellaswag_is_that_of_the_exam(ask: Any, models: tuple[Path, Path], rows: Path) -> None:
    found = ask(models[0], "hellaswag", rows, limit=5)
    model = DeepseekV4ForCausalLM.from_pretrained(models[0])
    asked = spread_evenly(read_split(rows, "validation"), 5)
    expected = ChoiceTask("hellaswag", "HellaSwag", asked).run(model, load_tokenizer(512), 8192).to_dict()
    assert found == {"model": str(models[0]), "task": "hellaswag", **expected}
    assert ask(models[0], "hellaswag", rows / "validation.jsonl", limit=5) == found
    assert ask(models[0], "hellaswag", rows)["n"] == 6


@pytest.mark.slow
def test_two_models_are_compared(ask: Any, models: tuple[Path, Path], rows: Path) -> None:
    found = ask(models[0], "hellaswag", rows / "train.jsonl", limit=16, against=models[1])
    other = ask(models[1], "hellaswag", rows / "train.jsonl", limit=16)
    assert found["against"]["right"] == other["right"] != found["right"]
    change = found["against"]["difference"]["acc"]
    assert change["difference"] == pytest.approx(found["acc"]["value"] - other["acc"]["value"])
    won = sum(a > b for a, b in zip(found["right"], other["right"], strict=True))
    lost = sum(a < b for a, b in zip(found["right"], other["right"], strict=True))
    assert change["difference"] * 16 == pytest.approx(won - lost)
    assert won != lost


@pytest.mark.slow
def test_perplexity_is_that_of_the_exam(ask: Any, models: tuple[Path, Path], text: Path) -> None:
    found = ask(models[0], "perplexity", text, length=32, stride=16, against=models[1])
    model = DeepseekV4ForCausalLM.from_pretrained(models[0])
    score = PerplexityTask(read_texts(text), 32, 16).run(model, load_tokenizer(512), 8192)
    assert {key: found[key] for key in score.to_dict()} == score.to_dict()
    assert (found["length"], found["stride"]) == (32, 16)
    change = found["against"]["difference"]["loss"]
    assert change["difference"] == pytest.approx(found["loss"]["value"] - found["against"]["loss"]["value"])
    assert ask(models[0], "perplexity", text)["windows"] == 1


@pytest.mark.slow
def test_lines_say_the_same(ask: Any, models: tuple[Path, Path], rows: Path, text: Path) -> None:
    values = ask(models[0], "hellaswag", rows, against=models[1])
    lines = ask(models[0], "hellaswag", rows, as_json=False, against=models[1])
    acc, change = values["acc"], values["against"]["difference"]["acc"]
    assert lines[0].split() == ["questions:", "6"]
    assert lines[1].startswith("loss: ")
    assert lines[2].split()[:2] == ["acc:", f"{acc['value']:.1%}"]
    assert lines[4] == f"against {models[1]}:"
    assert f"; the first is {100 * change['difference']:+.2f} points (" in lines[7]
    assert lines[7].endswith(f"p = {change['p_value']:.3g}")
    lines = ask(models[0], "perplexity", text, as_json=False, length=32)
    assert lines[0].split()[:3] == ["text:", "1", "documents,"]
    assert [line.split(":")[0] for line in lines[1:]] == ["windows", "perplexity", "loss", "bits per byte"]


@pytest.mark.slow
def test_precision_and_numerics_are_those_asked_for(ask: Any, models: tuple[Path, Path], text: Path) -> None:
    plain = ask(models[0], "perplexity", text)["loss"]["value"]
    assert ask(models[0], "perplexity", text, batch_tokens=1)["loss"]["value"] == plain
    for reading in (LoadOptions(dtype="bf16"), LoadOptions(numerics="released")):
        other = ask(models[0], "perplexity", text, reading=reading)["loss"]["value"]
        assert other != plain
        assert other == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize(
    ("task", "data", "setting", "complaint"),
    [
        ("hellaswag,,perplexity", None, {}, "--task hellaswag,,perplexity: name each task once, separated by commas"),
        ("hellaswag,hellaswag", None, {}, "name each task once"),
        ("hellaswag", None, {"harness": HarnessOptions(num_fewshot=1)}, "hellaswag has no --num-fewshot"),
        ("hellaswag", None, {"length": 8}, "--length and --stride are for --task perplexity; hellaswag has no windows"),
        ("perplexity", None, {}, "perplexity needs --data"),
        ("perplexity", "none.txt", {}, "none.txt does not exist; perplexity reads .txt and .jsonl files"),
        ("perplexity", "text.txt", {"length": 8, "stride": 9}, "stride 9 is longer than a window of 8 tokens"),
        ("hellaswag", "text.txt", {}, "rows are read from .jsonl, .ndjson, .json, .csv, .parquet, .arrow files"),
        ("hellaswag", "nowhere", {}, "nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_told_before_a_model_is_read(
    ask: Any, tmp_path: Path, text: Path, task: str, data: str | None, setting: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        ask(tmp_path / "no model", task, data and text.parent / data, **setting)


def test_mistakes_of_both_models_are_told_before_the_first_is_read(
    ask: Any, models: tuple[Path, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "_run", lambda *_: pytest.fail("evaluated a model"))
    with pytest.raises(ValueError, match="nowhere is neither a folder nor a Hub id"):
        ask(models[0], "perplexity", text, against=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"--length \(4194304\) exceeds the model's \d+ positions"):
        ask(models[0], "perplexity", text, length=2**22)


@pytest.mark.slow
def test_a_model_that_is_none_takes_one_line(text: Path, tmp_path: Path) -> None:
    answer = seektune("eval", tmp_path / "nowhere", "--task", "perplexity", "--data", text)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == f"seektune: {tmp_path / 'nowhere'} is neither a folder nor a Hub id (organisation/name)\n"


def test_help_shows_a_call() -> None:
    assert "\n    seektune eval " in seektune("eval", "--help").stdout


@pytest.mark.slow
def test_an_adapter_is_on_the_first_model_alone(
    ask: Any, models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    """Against its own base: the numbers of the base are those it has alone, and the adapter's are others."""
    model = DeepseekV4ForCausalLM.from_pretrained(models[0])
    adapt(model, matching(model, ["attn"]), AdapterShape(rank=2, alpha=4.0))
    init_adapters(model, seed=0)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if name.endswith(".B"):
                tensor.normal_()
    save_adapter(model, tmp_path / "adapter")
    bare = ask(models[0], "perplexity", text)
    found = ask(models[0], "perplexity", text, reading=LoadOptions(adapter=tmp_path / "adapter"), against=models[0])
    assert found["against"]["loss"] == bare["loss"]
    assert found["loss"]["value"] != bare["loss"]["value"]
    assert found["adapter"] == str(tmp_path / "adapter")
    with pytest.raises(ValueError, match="no such folder"):
        ask(models[0], "perplexity", text, reading=LoadOptions(adapter=tmp_path / "none"))
