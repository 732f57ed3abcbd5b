"""The command `validate`: checks a recipe's weights, licence, tokenizer, data and layout without a GPU."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from seektune.checkpoint.hub import is_hub_id
from seektune.checkpoint.scan import format_of, mismatch, scan
from seektune.data.datasets.dataset import DataCache, EncodeSettings
from seektune.data.store.split import SPLITS, prepare_dataset
from seektune.data.tokenizer import OFFICIAL_SIZE, load_tokenizer
from seektune.io.console import listed, many, say
from seektune.lora.format import read_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.planner.hardware import Cluster, known_gpu
from seektune.planner.report import make_report
from seektune.recipe.recipe import Recipe
from seektune.run.data import open_split
from seektune.run.encode_settings import encode_settings
from seektune.run.frozen_models import check_frozen
from seektune.run.objective_data import check_objective_data
from seektune.run.streams import streamed, try_stream
from seektune.run.tasks import check_rows
from seektune.train.objective_section import FrozenModel
from seektune.workflows.plan import layout_at_launch

GOOD = "ok"
BAD = "wrong"
UNKNOWN = "unknown"
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENSE-MODEL")
"""Licence files of a checkpoint folder."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    subject: str
    state: str
    said: str


def validate(recipe: Recipe, cluster: Cluster | None, cache_dir: Path, as_json: bool) -> bool:
    """Print all findings; returns whether none is wrong. What would need the network is unknown, not wrong."""
    findings = list(check(recipe, cluster, cache_dir))
    if as_json:
        say(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            say(f"{finding.state:>7}  {finding.subject}: {finding.said}")
    return all(finding.state != BAD for finding in findings)


def check(recipe: Recipe, cluster: Cluster | None, cache_dir: Path) -> Iterator[Finding]:
    """All findings, in order."""
    yield Finding("recipe", GOOD, f"{recipe.steps} steps of {recipe.batch.global_size} rows")
    config = recipe.model.architecture()
    if config is None:
        yield Finding("model", UNKNOWN, f"{recipe.model.weights} is on the Hub; set model.preset to check its shape")
    else:
        yield Finding("model", GOOD, f"{config.num_hidden_layers} layers of width {config.hidden_size}")
    yield from _weights(recipe, config)
    if recipe.lora.adapter is not None:
        adapter = Path(recipe.lora.adapter)
        yield _tried("adapter", lambda: f"changes {len(read_adapter(adapter).changes)} modules")
    yield from _frozen(recipe, config)
    vocabulary = None if config is None else config.vocab_size
    yield _tried("tokenizer", lambda: _tokenizer(vocabulary))
    yield _tried("data", lambda: _rows(recipe, config, cache_dir))
    if config is not None:
        yield from _tasks(recipe, config)
        yield _plan(recipe, config, cluster)


def _tried(subject: str, work: Callable[[], str]) -> Finding:
    """The result of a check: `BAD` for a ValueError, `UNKNOWN` for an OSError, such as no network."""
    try:
        return Finding(subject, GOOD, work())
    except ValueError as error:
        return Finding(subject, BAD, str(error))
    except OSError as error:
        return Finding(subject, UNKNOWN, str(error))


def _weights(recipe: Recipe, config: DeepseekV4Config | None) -> Iterator[Finding]:
    weights = recipe.model.weights
    if weights is None:
        yield Finding("weights", GOOD, "random, none are read")
        return
    folder = Path(weights)
    if not folder.is_dir():
        yield Finding("weights", UNKNOWN, f"{weights} is not a folder here; it will be downloaded from the Hub")
        yield Finding("licence", UNKNOWN, f"https://huggingface.co/{weights} states it")
        return
    found = scan(folder)
    faults = list(found.problems)
    if config is not None:
        shapes = {name: x.shape for name, x in DeepseekV4ForCausalLM(config, device="meta").state_dict().items()}
        compared = mismatch(found, shapes)
        for names, what in ((compared.missing, "are missing"), (compared.extra, "belong to another model")):
            faults += [f"{len(names)} tensors {what}: {listed(names, 3)}"] * bool(names)
        faults += compared.wrong[:3]
    said = f"{len(found.tensors):,} tensors in {len(found.files)} files, {format_of(found) or 'mixed'} format"
    yield Finding("weights", BAD if faults else GOOD, "; ".join(faults) or said)
    licence = next((name for name in LICENCES if (folder / name).is_file()), None)
    yield Finding("licence", GOOD if licence else UNKNOWN, licence or f"{folder} states none")


def _frozen(recipe: Recipe, config: DeepseekV4Config | None) -> Iterator[Finding]:
    """The checkpoints that run beside the model; nothing is downloaded."""
    for wanted in recipe.objective.named_models:
        if config is None or (not os.path.exists(wanted.checkpoint) and is_hub_id(wanted.checkpoint)):
            yield Finding(wanted.key, UNKNOWN, f"{wanted.checkpoint} is looked at when training begins")
        else:
            yield _tried(wanted.key, partial(_fits, wanted, config))


def _fits(wanted: FrozenModel, config: DeepseekV4Config) -> str:
    check_frozen(wanted, config)
    return f"{wanted.checkpoint} is whole, and has the vocabulary of the model"


def _tokenizer(vocabulary: int | None) -> str:
    tokenizer = load_tokenizer(vocabulary if vocabulary is not None else OFFICIAL_SIZE)
    return f"fits a vocabulary of {vocabulary:,}" if vocabulary is not None else f"{type(tokenizer).__name__} loads"


def _rows(recipe: Recipe, config: DeepseekV4Config | None, cache_dir: Path) -> str:
    """What training reads of each dataset; the rows are prepared, unless the cache has them."""
    settings = EncodeSettings(OFFICIAL_SIZE) if config is None else encode_settings(config)
    cache = DataCache(cache_dir, lambda sentence: None)
    check_objective_data(recipe)
    if sections := streamed(recipe.datasets):
        return "; ".join(try_stream(section, settings, cache, recipe.batch) for section in sections)
    found = []
    for dataset in recipe.datasets:
        stores = prepare_dataset(dataset, settings, cache)
        train, _ = (open_split(dataset, split, stores, recipe, cache.note) for split in SPLITS)
        lengths = train.examples.lengths
        tokens = f"{len(lengths):,} rows of {many(int(lengths.sum(dtype='int64')))} tokens"
        long = train.report.overlong
        found.append(f"{tokens} from {train.store.manifest.title}, the longest {lengths.max()}, {long} too long")
    return "; ".join(found)


def _tasks(recipe: Recipe, config: DeepseekV4Config) -> Iterator[Finding]:
    """The rows of the user's own that tasks ask, if there are any."""
    found = 0

    def read() -> str:
        nonlocal found
        found = check_rows(recipe, config, load_tokenizer(config.vocab_size))
        return f"the rows of {found} can be asked"

    finding = _tried("tasks", read)
    if found or finding.state != GOOD:
        yield finding


def _plan(recipe: Recipe, config: DeepseekV4Config, cluster: Cluster | None) -> Finding:
    if cluster is None and recipe.parallel.layout == "auto":
        return Finding("plan", UNKNOWN, "parallel: auto takes a layout at launch; --gpus and --gpu would say which")
    somewhere = cluster or known_gpu("h100-80gb", recipe.parallel.least_world())
    try:
        layout = layout_at_launch(recipe, config, somewhere)
    except ValueError as error:
        return Finding("plan", BAD, str(error))
    if cluster is None:
        return Finding("plan", GOOD, f"{layout}; --gpus and --gpu would say whether it fits")
    fits, sentence = make_report(layout, cluster).verdict()
    taken = f"{layout}; " if recipe.parallel.layout == "auto" else ""
    return Finding("plan", GOOD if fits else BAD, f"{taken}{sentence}")
