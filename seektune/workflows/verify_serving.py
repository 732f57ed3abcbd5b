"""The command `verify-serving`: whether a running server computes the base, or the base with an adapter.

The log-probabilities of the most likely next tokens after fixed prompts are compared with those computed here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate.served_model import ServedModel
from seektune.generate.session import LoadOptions
from seektune.io.console import say
from seektune.lora.build import share_weights
from seektune.lora.files import load_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.variants import encoding_of
from seektune.workflows.served_chat import BEST, TokenNames, chat_sentence

BASE = "the base"
ADAPTER = "the adapter"
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "1, 1, 2, 3, 5, 8,",
    "Once upon a time, in a village by the sea,",
    "SELECT name FROM users WHERE",
    "Die Hauptstadt von Österreich heißt",
    "床前明月光，",
)
APART = 2.0
"""The other model must be this many times farther away."""


@dataclass(frozen=True)
class Verdict:
    """What a server computes."""

    served: str | None
    """`BASE` or `ADAPTER`; None if it is neither, or if they are too similar to decide."""
    distances: dict[str, float]
    """Mean absolute difference of log-probabilities from each model, in nats."""
    sentence: str


def verify_serving(served: ServedModel, model: str, reading: LoadOptions, tolerance: float) -> bool:
    """Compare a server with a checkpoint and, if `reading` names one, its adapter; returns whether it serves that.

    Args:
        served: the server's model.
        model: a checkpoint folder or Hub id.
        reading: how it is loaded; with an adapter, the server should serve the adapter.
        tolerance: distance up to which two models are the same, in nats.

    Raises:
        ValueError: a model cannot be loaded, or the server refuses the requests.
        OSError: the server cannot be reached.
    """
    reading.check()
    served.best_logprobs([0], BEST)  # before weights are loaded
    models = _models(model, reading)
    config = models[BASE].config
    tokenizer = load_tokenizer(config.vocab_size)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in PROMPTS]
    names = TokenNames.of(tokenizer, config.vocab_size)
    theirs = [names.identified(served.best_logprobs(prompt, BEST)) for prompt in prompts]
    distances = {name: _distance(theirs, next_logprobs(each, prompts)) for name, each in models.items()}
    verdict = judge(distances, tolerance)
    for name, distance in distances.items():
        say(f"distance from {name}: {distance:z.4f} nats")
    say(verdict.sentence)
    say(chat_sentence(served, tokenizer, encoding_of(config), names, tolerance))
    return verdict.served == list(models)[-1]


def judge(distances: Mapping[str, float], tolerance: float) -> Verdict:
    """Which model a server computes, from its distance to each."""
    found = dict(distances)
    best = min(found, key=lambda name: found[name])
    others = [distance for name, distance in found.items() if name != best]
    if found[best] > tolerance:
        wanted = " nor ".join(found)
        return Verdict(None, found, f"serves neither {wanted}" if others else f"does not serve {wanted}")
    if any(distance < APART * found[best] or distance == found[best] for distance in others):
        return Verdict(None, found, "serves the base or the adapter: they are too similar on these prompts to decide")
    return Verdict(best, found, f"serves {best}")


@torch.no_grad()
def next_logprobs(model: DeepseekV4ForCausalLM, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The log-probabilities of all tokens after each prompt, fp32 `[V]`.

    Raises:
        ValueError: one is not finite.
    """
    device = model.head.weight.device
    logits = [model(torch.tensor([list(prompt)], device=device)).logits[0, -1] for prompt in prompts]
    found = [each.float().log_softmax(-1).cpu() for each in logits]
    if not all(bool(each.isfinite().all()) for each in found):
        raise ValueError("the log-probabilities computed here are not finite: weights or adapter are damaged")
    return found


def _models(model: str, reading: LoadOptions) -> dict[str, DeepseekV4ForCausalLM]:
    base = LoadOptions(reading.dtype, reading.numerics, reading.quantized).read(model)
    if reading.adapter is None:
        return {BASE: base}
    adapted = share_weights(base)
    load_adapter(adapted, reading.adapter)
    return {BASE: base, ADAPTER: adapted}


def _distance(theirs: Sequence[Mapping[int, float]], ours: Sequence[Tensor]) -> float:
    """Mean absolute difference over the tokens that the server names."""
    gaps = [
        abs(value - float(logprobs_V[token]))
        for named, logprobs_V in zip(theirs, ours, strict=True)
        for token, value in named.items()
    ]
    return sum(gaps) / len(gaps)
