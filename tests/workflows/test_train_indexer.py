"""A warm-up of indexers changes nothing else, resumes exactly and is followed by training of everything."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from seektune.checkpoint import tensor_names
from seektune.io.jsonl import as_line
from seektune.io.run_files import METRICS
from seektune.model.indexer import INDEXERS
from seektune.run import named_key
from seektune.signals import Interrupted
from seektune.train import trainer
from seektune.workflows import train as workflow
from tests.cache import CACHE
from tests.checkpoint.reader import raw
from tests.read_run import untimed


def train(recipe: Any) -> Path:
    return workflow.train(recipe, "run", (), CACHE)


@pytest.mark.slow
def test_a_warmup_changes_indexers_alone_resumes_exactly_and_everything_follows(
    recipe: Any, toy_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    toy_model(vocab_size=512).float().save_pretrained(base, format="fp32")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(as_line({"text": f"{number} and {number * number}. " * 30}) for number in range(20, 44)))
    common = {
        "data": {"kind": "text", "path": str(rows), "validation": 0.2},
        "model": {"weights": str(base), "dtype": "fp32"},
        "evaluate": {"tasks": []},
    }
    common["batch"] = {"global_size": 2, "micro_size": 2, "length": 160, "pack": True, "overlong": "split"}
    warmup = {**common, "loss": {"mtp_weight": 0}, "train": {"indexer": "kl", "indexer_warmup": True}}
    warmed = train(recipe(**warmup, run_dir=str(tmp_path / "whole")))
    said = capsys.readouterr().out
    step = trainer.train_step

    def signalling(*arguments: Any) -> Any:
        if arguments[3] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    parts = recipe(**warmup, run_dir=str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", signalling)
        with pytest.raises(Interrupted):
            train(parts)
    assert untimed(train(parts), METRICS) == untimed(warmed, METRICS)
    assert raw(tmp_path / "parts" / "model") == raw(warmed / "model")

    saved = tensor_names(max((warmed / "checkpoints").iterdir()))
    assert len([name for name in saved if name.startswith("model.")]) == 12, "a checkpoint holds indexers alone"

    first, *_, last = untimed(warmed, METRICS)
    assert last["indexer_loss"] < first["indexer_loss"]
    assert f"\nindexer loss: {first['indexer_loss']:.4f} → {last['indexer_loss']:.4f}\n" in said
    assert first["index_recall_of_layers"].keys() == {"1", "3"}
    assert "recall in layer 1" in (warmed / "report.html").read_text(encoding="utf-8")

    same = {**common, "train": {"indexer": "kl"}, "resume": str(warmed), "run_dir": str(tmp_path / "resumed")}
    with pytest.raises(ValueError, match="does not hold the weights that this run trains"):
        train(recipe(**same))

    joint = {**common, "model": {"weights": str(warmed / "model"), "dtype": "fp32"}, "train": {"indexer": "kl"}}
    joined = train(recipe(**joint, run_dir=str(tmp_path / "joint"), steps=1))
    before, after, later = (raw_of(folder) for folder in (base, warmed / "model", joined / "model"))
    assert {name for name in before if before[name] != after[name]} == {name for name in before if INDEXERS in name}
    changed = {name for name in after if after[name] != later[name]}
    assert {name for name in changed if INDEXERS in name} == {name for name in after if INDEXERS in name}
    assert "layers.1.attn.wkv.weight" in changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"indexer": "kl"}, "batch__length": 32}, "train.indexer needs a batch.length of 36 or more, not 32"),
        ({"batch__length": 2**21}, "batch.length .2097152. exceeds the model's"),
        ({"train": {"drafter": True}}, "train.drafter needs a checkpoint with DSpark stages"),
    ],
)
def test_what_does_not_fit_weights_on_the_hub_is_refused(
    recipe: Any, config_file: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    """Their architecture is known when a run begins, and not when its recipe is read."""
    monkeypatch.setattr(named_key, "locate", lambda name: config_file.parent)
    with pytest.raises(ValueError, match=message):
        train(recipe(model={"weights": "maker/model", "dtype": "fp32"}, **changes))


def raw_of(folder: Path) -> dict[str, Any]:
    """Values of a folder's tensors, whose formats differ: exports are bf16."""
    import torch

    from seektune.model.causal_lm import DeepseekV4ForCausalLM

    state = DeepseekV4ForCausalLM.from_pretrained(folder).state_dict()
    return {name: x.to(torch.bfloat16).float().numpy().tobytes() for name, x in state.items()}
