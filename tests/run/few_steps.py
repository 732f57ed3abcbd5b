"""Trains a very small model on the data of a recipe for a few steps, in this process or on a mesh of processes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from seektune.data.datasets.dataset import DataCache
from seektune.data.loader import Loader
from seektune.data.streaming import virtual_reader
from seektune.data.streaming.loader import StreamLoader
from seektune.io.jsonl import as_line
from seektune.parallel.dims import make_dims
from seektune.parallel.mesh import Mesh
from seektune.recipe.recipe import Recipe
from seektune.run.build import build_model, read_config
from seektune.run.data import prepare_data
from seektune.train.optim.build import build_optimizer
from seektune.train.settings import BatchStream
from seektune.train.step import train_step
from tests.train.tiny_run import CONFIG

STEPS = 3
Course = list[tuple[float, float]]
"""Loss and norm of the gradient of each step."""


def small_recipe(folder: Path, data: Any, **changes: Any) -> Recipe:
    """A recipe of the small model on some data; `changes` are those of the section `batch`."""
    CONFIG.replace(vocab_size=512).save(folder)
    values = {
        "model": {"config": str(folder / "config.json"), "dtype": "fp32"},
        "data": data,
        "batch": {"global_size": 8, "micro_size": 4, "length": 128} | changes,
        "optimizer": {"lr": 5e-3},
        "evaluate": {"tasks": []},
        "steps": STEPS,
    }
    return Recipe.model_validate_json(json.dumps(values), strict=True)


def write_pairs(folder: Path, count: int, files: int = 1) -> dict[str, Any]:
    """Rows with weights, all of different lengths, in no order of length; the section that reads them."""
    folder.mkdir()
    sizes = random.Random(0).sample(range(2, 2 * count + 2, 2), count)
    pairs = [{"prompt": f"row {i}", "completion": "ab " * size, "w": 1 + i % 4 / 4} for i, size in enumerate(sizes)]
    for file in range(files):
        (folder / f"train-{file}.jsonl").write_text("".join(map(as_line, pairs[file::files])), encoding="utf-8")
    (folder / "validation.jsonl").write_text(as_line({"prompt": "x", "completion": "y", "w": 1}), encoding="utf-8")
    place = folder / "train-*.jsonl"
    held_out = str(folder / "validation.jsonl")
    return {"kind": "prompt_completion", "path": str(place), "validation": held_out, "weight_column": "w"}


def loader_of(recipe: Recipe, cache: Path) -> Loader | StreamLoader:
    """The loader of a run; streams are shuffled in blocks of 16 rows, of which few are soon read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtual_reader, "BLOCK", 16)
        data = prepare_data(recipe, read_config(recipe.model), DataCache(cache, lambda note: None), _mesh(recipe))
    return data.loader


def course(recipe: Recipe, stream: BatchStream) -> Course:
    """Train the model of the recipe on a stream."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, read_config(recipe.model), _mesh(recipe), with_weights=True)
    optimizer = build_optimizer(model, recipe.optimizer, recipe.seed)
    records = [
        train_step(model, optimizer, stream.next_step(), step, recipe.optimizer.lr, recipe.loss, None)
        for step in range(1, recipe.steps + 1)
    ]
    return [(record.loss, record.grad_norm) for record in records]


def train_few(recipe: Recipe, cache: Path) -> Course:
    """Train as a run does, on the recipe's data."""
    return course(recipe, loader_of(recipe, cache))


class Resumed:
    """A stream that another loader continues after two steps, from the state as a checkpoint holds it."""

    def __init__(self, recipe: Recipe, cache: Path):
        self._recipe = recipe
        self._cache = cache
        self._stream = loader_of(recipe, cache)
        self._steps = 0

    def next_step(self) -> Any:
        """As `BatchStream.next_step`."""
        if self._steps == 2:
            state = json.loads(json.dumps(self._stream.state_dict()))
            self._stream = loader_of(self._recipe, self._cache)
            self._stream.load_state_dict(state)
        self._steps += 1
        return self._stream.next_step()


def _mesh(recipe: Recipe) -> Mesh:
    world = dist.get_world_size() if dist.is_initialized() else 1
    return Mesh.of(make_dims(recipe.parallel, world, read_config(recipe.model)), torch.device("cpu"))
