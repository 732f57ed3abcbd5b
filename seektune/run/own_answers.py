"""Answers of the model itself to training prompts: what its drafter is trained on."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from seektune.data.example import Example, continuation
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader
from seektune.data.mixing import Mixture
from seektune.data.step_data import Share
from seektune.generate.engine import DecodeEngine
from seektune.generate.mesh import DecodeMesh
from seektune.generate.request import Request
from seektune.generate.sampling_params import DEFAULT
from seektune.io.atomic import write_atomically
from seektune.io.console import say
from seektune.io.jsonl import as_line, read_jsonl
from seektune.io.run_files import OWN_ANSWERS
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.model import ParallelModel
from seektune.run.context import RunContext
from seektune.run.data import TrainData, digest_of
from seektune.run.decoding import run_decoding

ROWS = 32
"""Prompts that are answered together."""


def with_own_answers(run: RunContext, data: TrainData, model: ParallelModel) -> TrainData:
    """The data with the model's own answers in place of the training rows. Collective.

    A run that resumes reads them from its folder, or from that of the run it started from; `model` decodes them
    otherwise, with its processes together.

    Raises:
        ValueError: the file of answers is missing or damaged, or no training row has a prompt.
    """
    recipe = run.recipe
    if run.start.checkpoint is None:
        found = run_decoding(run, model, partial(_answers, run, data))
    else:
        places = [run.folder / OWN_ANSWERS, run.start.checkpoint.parent.parent / OWN_ANSWERS]
        found = run.mesh.ranks.first(
            lambda: read_answers(next((place for place in places if place.is_file()), places[0]))
        )
    mixture = Mixture([ExampleList(found)], recipe.seed)
    share = Share(run.mesh.coords.dp, run.mesh.dims.data_size)
    loader = Loader(mixture, recipe.batch, data.tokenizer.pad_id, share)
    return replace(data, loader=loader, rows=len(found), digest=digest_of(found), own_answers=found)


def write_answers(folder: Path, answers: Sequence[Example]) -> None:
    """Write the answers into a run folder.

    Raises:
        OSError: writing failed.
    """
    lines = [as_line({"tokens": list(each.tokens), "prompt_tokens": len(_prompt(each))}) for each in answers]
    write_atomically(folder / OWN_ANSWERS, "".join(lines).encode())


def read_answers(file: Path) -> list[Example]:
    """The answers that `write_answers` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing: the model's own answers, which the drafter is trained on")
    examples = []
    for place, row in read_jsonl(file):
        tokens = row.get("tokens")
        start = row.get("prompt_tokens")
        if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
            raise ValueError(f"{place}: tokens must be a list of ids; the file is damaged")
        if type(start) is not int or not 0 < start < len(tokens):
            raise ValueError(f"{place}: prompt_tokens must be below the number of tokens; the file is damaged")
        examples.append(continuation(tokens[:start], tokens[start:], place))
    return examples


def _prompt(example: Example) -> list[int]:
    """The tokens before the first taught one; none if nothing is taught."""
    taught = np.flatnonzero(example.taught)
    return [int(token) for token in example.tokens[: taught[0]]] if len(taught) else []


def _answers(run: RunContext, data: TrainData, model: DeepseekV4ForCausalLM | DecodeMesh) -> list[Example]:
    """On rank 0."""
    recipe = run.recipe
    section = recipe.train
    requests: list[Request] = []
    if not isinstance(data.loader, Loader):
        raise ValueError("train.drafter answers prompts of prepared rows; set data.stream to false")
    for number in range(len(data.loader.mixture)):
        if len(requests) == section.drafter_answers:
            break
        prompt = _prompt(data.loader.mixture.example(number))
        room = min(section.drafter_answer_tokens, recipe.batch.length - len(prompt))
        if prompt and room > 0:
            stop = frozenset({data.tokenizer.eos_id})
            requests.append(Request(prompt, room, DEFAULT, stop, seed=recipe.seed + number))
    if not requests:
        raise ValueError("train.drafter needs training rows with a prompt before the taught tokens; none has one")
    answers: list[list[int]] = [[] for _ in requests]
    for start in range(0, len(requests), ROWS):
        for token in DecodeEngine(model, requests[start : start + ROWS], cpu_kernels=False).tokens():
            answers[start + token.request].append(token.id)
        run.stop_alone_if_signalled()
    say(f"own answers: {len(requests):,} of up to {section.drafter_answer_tokens} tokens, to train the drafter on")
    return [
        continuation(list(request.prompt), answer, f"own answer {number}")
        for number, (request, answer) in enumerate(zip(requests, answers, strict=True))
    ]
