"""Files with values that no tool writes are read or answered with a ValueError, never with another error."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.checkpoint import read_tensors, tensor_names, write_train_state
from seektune.checkpoint.scan import scan
from seektune.lora.delta import LoraDelta
from seektune.lora.format import CONFIG as ADAPTER_CONFIG
from seektune.lora.format import WEIGHTS, read_adapter, write_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.workflows.inspect import read_card

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
TRIES = 40
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**62, 10**30, 10**400, -(10**30), 0.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", "x", "\ud800", "\0", "..", "a\nb", "\x1b[31m", [], [0], [[]], {}, {"": None}, {"a": {"b": []}}),
    *([0] * 1000, "x" * 100_000, ["layers"] * 3, {"weight_map": {}}),
]


def mutated(value: Any, dice: random.Random) -> Any:
    """A JSON value with one part replaced, removed or added."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        act = dice.random()
        if act < 0.15:
            return {name: each for name, each in value.items() if name != key}
        if act < 0.25:
            return value | {str(dice.choice(STRANGE))[:50]: dice.choice(STRANGE)}
        return value | {key: mutated(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        return [*value[:place], mutated(value[place], dice), *value[place + 1 :]]
    return dice.choice(STRANGE)


def survives(read: Callable[[], object]) -> bool:
    """Whether it was read; the command line prints an error as one line, whatever is in it."""
    try:
        read()
    except ValueError as error:
        message = str(error)
        assert message
        assert len(message) < 2000, message[:300]
        return False
    return True


def try_json(file: Path, read: Callable[[], object], seed: int) -> set[bool]:
    dice = random.Random(seed)
    whole = json.loads(file.read_text())
    outcomes = set()
    for _ in range(TRIES):
        file.write_text(json.dumps(mutated(whole, dice)))
        outcomes.add(survives(read))
    return outcomes


@pytest.fixture
def folder(parity_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_folder, tmp_path / "model", ignore=shutil.ignore_patterns("expected*")))


def test_config(folder: Path) -> None:
    def read() -> None:
        config = DeepseekV4Config.from_pretrained(folder)
        DeepseekV4ForCausalLM(config, device="meta")

    assert try_json(folder / "config.json", read, 1) == {True, False}


@pytest.mark.slow
def test_config_of_a_folder(folder: Path) -> None:
    read_card(folder)
    assert False in try_json(folder / "config.json", lambda: DeepseekV4ForCausalLM.from_pretrained(folder), 2)
    assert True in try_json(folder / "config.json", lambda: read_card(folder), 3)


def test_index(folder: Path) -> None:
    assert False in try_json(folder / INDEX, lambda: DeepseekV4ForCausalLM.from_pretrained(folder), 4)
    assert try_json(folder / INDEX, lambda: scan(folder), 5) == {True}


def with_header(content: bytes, change: Callable[[Any], Any]) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def test_header_of_weights(folder: Path) -> None:
    dice = random.Random(6)
    whole = (folder / SHARD).read_bytes()
    for _ in range(TRIES):
        (folder / SHARD).write_bytes(with_header(whole, lambda header: mutated(header, dice)))
        survives(lambda: DeepseekV4ForCausalLM.from_pretrained(folder))
        assert survives(lambda: scan(folder))


def test_bytes_of_weights(folder: Path) -> None:
    dice = random.Random(7)
    whole = (folder / SHARD).read_bytes()
    for _ in range(TRIES):
        place = dice.randrange(4096)
        (folder / SHARD).write_bytes(whole[:place] + dice.randbytes(dice.randrange(8)) + whole[place + 4 :])
        assert survives(lambda: scan(folder))


def test_adapter(tmp_path: Path) -> None:
    change = LoraDelta(torch.randn(2, 8), torch.randn(6, 2), 2.0)
    write_adapter(tmp_path / "adapter", {"layers.0.attn.wq_b": change, "layers.1.attn.wq_a": change}, {})
    config = tmp_path / "adapter" / ADAPTER_CONFIG
    whole = config.read_text()
    assert try_json(config, lambda: read_adapter(tmp_path / "adapter"), 8) == {True, False}
    config.write_text(whole)
    dice = random.Random(9)
    weights = tmp_path / "adapter" / WEIGHTS
    content = weights.read_bytes()
    for _ in range(TRIES):
        weights.write_bytes(with_header(content, lambda header: mutated(header, dice)))
        survives(lambda: read_adapter(tmp_path / "adapter"))


def test_shards_of_a_run(tmp_path: Path) -> None:
    tensors = {"model.a": torch.randn(4, 6), "model.b": torch.randn(3), "optimizer.a:step": torch.tensor(3.0)}
    write_train_state(tmp_path / "step-1", tensors, {})
    (file,) = (tmp_path / "step-1").glob("*.safetensors")
    content = file.read_bytes()
    dice = random.Random(10)

    def change(header: Any) -> Any:
        info = header["__metadata__"]
        key = "DCP_SHARDING_INFO"
        text = "{" if dice.random() < 0.1 else json.dumps(mutated(json.loads(info[key]), dice))
        return header | {"__metadata__": info | {key: text}}

    def read() -> None:
        tensor_names(tmp_path / "step-1")
        read_tensors(tmp_path / "step-1", {name: torch.zeros_like(x) for name, x in tensors.items()})

    outcomes = set()
    for _ in range(TRIES):
        file.write_bytes(with_header(content, change))
        outcomes.add(survives(read))
    assert False in outcomes
    file.write_bytes(content)
    read()
