"""Targets: what a run that is resumed reads of its folder: state.json, manifest.json, shards and metrics."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seektune.checkpoint import MANIFEST, Shard, read_tensors, tensor_names, write_train_state
from seektune.checkpoint.train_state import FACTS
from seektune.data.config import BatchConfig
from seektune.data.example import Example
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader
from seektune.data.mixing import Mixture
from seektune.io.json_file import read_json
from seektune.io.jsonl import JsonlWriter
from seektune.io.run_files import CHECKPOINTS, METRICS, RECIPE, REPORT
from seektune.parallel.model import ParallelModel
from seektune.recipe.load import dump_recipe, load_recipe
from seektune.run.resume import find_start, product_of, refuse_other_rows
from seektune.train.config import LoggingConfig
from seektune.train.metrics import MetricsLog
from seektune.train.resumable import ResumableRun
from seektune.train.state_tensors import run_tensors
from tests.fuzz.target import Read, Target, as_json, as_lines, framed
from tests.places import TINY
from tests.train.tiny_run import CONFIG, RECORD, settings, small_model

EXAMPLES = 4
STEP = "step-000002"
STATE: dict[str, Any] = {
    "step": 2,
    "stream": {"position": 2, "row": 0, "examples": [EXAMPLES]},
    "log": {"total_tokens": 80, "loads": {"0": [1, 2, 3, 4]}},
    "guard": {"recent": [4.1, 4, 4, 4, 4, 4, 4, 4], "skipped": 0},
    "base": None,
    "rows": "abc",
    "recipe": load_recipe(TINY).model_dump(mode="json"),
}
TENSORS = {"model.a": torch.ones(4, 6), "model.b": torch.ones(3), "optimizer.a:step": torch.tensor(3.0)}
OFFSETS = {"model.a": [0, 0], "model.b": [0], "optimizer.a:step": []}
DTYPE = {"dtype": "F32"}
SHARD = {
    "__metadata__": {
        "format": "pt",
        "DCP_SHARDING_INFO": {name: {"saved_offsets": offsets} for name, offsets in OFFSETS.items()},
        "DCP_VERSION": "1.0",
    },
    "model.a": {**DTYPE, "shape": [4, 6], "data_offsets": [0, 96]},
    "model.b": {**DTYPE, "shape": [3], "data_offsets": [96, 108]},
    "optimizer.a:step": {**DTYPE, "shape": [], "data_offsets": [108, 112]},
}
SHARD_FILE = "shard-00001-model-00001-of-00001.safetensors"
QUIET = LoggingConfig(to=(), every=10**6)
METRIC = {"step": 2, "loss": 4.1, "lr": 0.01}


def open_state(folder: Path) -> Read:
    examples = ExampleList([Example([1, 2], [False, True], "x")] * EXAMPLES)
    loader = Loader(Mixture([examples], seed=0), BatchConfig(global_size=2, length=8), pad_id=0)
    run = ResumableRun(ParallelModel.alone(small_model()), loader, settings(), folder)
    checkpoint = _checkpoint(folder, run_tensors(run.model, run.optimizer))
    recipe = load_recipe(TINY, [f"--resume={checkpoint}"])

    def read(content: bytes) -> None:
        (checkpoint / FACTS).write_bytes(content)
        manifest = {file.name: _entry(file) for file in checkpoint.iterdir() if file.name != MANIFEST}
        (checkpoint / MANIFEST).write_bytes(as_json(manifest))
        find_start(recipe, folder / "new", lambda line: None)
        refuse_other_rows(checkpoint, "abc")
        run.resume(checkpoint)
        with MetricsLog(folder, 3, QUIET, run.step, run.log_state) as log:
            log.step(replace(RECORD, step=run.step + 1, loads={0: [1] * CONFIG.n_routed_experts}))
        run._guard.spike(1.0)

    return read


def open_manifest(folder: Path) -> Read:
    checkpoint = _checkpoint(folder)
    recipe = load_recipe(TINY, [f"--resume={checkpoint}"])

    digests = {
        MANIFEST_DOCUMENT[name]["sha256"]: entry["sha256"] for name, entry in read_json(checkpoint / MANIFEST).items()
    }

    def read(content: bytes) -> None:
        for documented, digest in digests.items():
            content = content.replace(documented.encode(), digest.encode())
        (checkpoint / MANIFEST).write_bytes(content)
        find_start(recipe, folder / "new", lambda line: None)

    return read


def open_shard(folder: Path) -> Read:
    (folder / STEP).mkdir()

    def read(content: bytes) -> None:
        (folder / STEP / SHARD_FILE).write_bytes(content)
        tensor_names(folder / STEP)
        read_tensors(folder / STEP, {name: torch.zeros_like(values) for name, values in TENSORS.items()})

    return read


def open_metrics(folder: Path) -> Read:
    recipe = load_recipe(TINY, ["--steps=2"])
    (folder / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
    (folder / REPORT).touch()
    (folder / product_of(recipe)).mkdir()

    def read(content: bytes) -> None:
        (folder / METRICS).write_bytes(content)
        find_start(recipe, folder, lambda line: None)
        with JsonlWriter(folder / METRICS) as log:
            log.rewind(1)

    return read


def _checkpoint(folder: Path, tensors: Mapping[str, Tensor | Shard] = TENSORS) -> Path:
    write_train_state(folder / CHECKPOINTS / STEP, tensors, STATE)
    return folder / CHECKPOINTS / STEP


def _entry(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def as_shard(header: Any) -> bytes:
    """A file of a checkpoint; the offsets in its metadata are JSON in a text."""
    if not isinstance(header, Mapping) or not isinstance(header.get("__metadata__"), Mapping):
        return framed(header, bytes(112))
    written = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in header["__metadata__"].items()
    }
    return framed({**header, "__metadata__": written}, bytes(112))


def manifest() -> dict[str, Any]:
    """The manifest of the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        return read_json(_checkpoint(Path(folder)) / MANIFEST)


MANIFEST_DOCUMENT = manifest()
RUNS = (
    Target("state", open_state, (STATE,), as_json),
    Target("manifest", open_manifest, (MANIFEST_DOCUMENT,), as_json),
    Target("shard", open_shard, (SHARD,), as_shard),
    Target("metrics", open_metrics, ([{"step": 1, "loss": 4.2}, METRIC],), as_lines),
)
