"""The command `verify-serving`: whether a running server computes the base, or the base with an adapter.

The log-probabilities of the most likely next tokens after fixed prompts are compared with those computed here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.evaluate.served_model import ServedModel
from seektune.generate.session import LoadOptions
from seektune.io.console import say
from seektune.lora.build import share_weights
from seektune.lora.files import load_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.variants import encoding_of

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
BEST = 5
"""Most likely tokens whose log-probabilities are compared after each prompt; servers often allow no more."""
APART = 2.0
"""The other model must be this many times farther away."""
QUESTION = ({"role": "user", "content": "What is 17 times 23?"},)


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
    first = served.best_logprobs([0], BEST)  # before weights are loaded
    models = _models(model, reading)
    config = models[BASE].config
    tokenizer = load_tokenizer(config.vocab_size)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in PROMPTS]
    theirs = [served.best_logprobs(prompt, len(first)) for prompt in prompts]
    distances = {name: _distance(theirs, best_logprobs(each, prompts)) for name, each in models.items()}
    verdict = judge(distances, tolerance)
    for name, distance in distances.items():
        say(f"distance from {name}: {distance:z.4f} nats")
    say(verdict.sentence)
    say(chat_sentence(served, tokenizer, encoding_of(config)))
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
def best_logprobs(model: DeepseekV4ForCausalLM, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    """The log-probabilities of the most likely tokens after each prompt, the highest first.

    Raises:
        ValueError: one is not finite.
    """
    device = model.head.weight.device
    logits = [model(torch.tensor([list(prompt)], device=device)).logits[0, -1] for prompt in prompts]
    found = [each.float().log_softmax(-1).topk(min(BEST, each.numel())).values.tolist() for each in logits]
    if not all(isfinite(value) for each in found for value in each):
        raise ValueError("the log-probabilities computed here are not finite: weights or adapter are damaged")
    return found


def _modes(encoding: EncodingName) -> dict[str, tuple[str, str | None]]:
    """Mode and effort of chats, by what a sentence calls them."""
    efforts = [effort for effort in find_encoding(encoding).efforts if effort is not None]
    with_effort = {f"thinking with effort {effort}": ("thinking", effort) for effort in efforts}
    return {"chat": ("chat", None), "thinking": ("thinking", None), **with_effort}


def chat_sentence(served: ServedModel, tokenizer: Tokenizer, encoding: EncodingName) -> str:
    """Whether the server's chat prompts are as long as those of the checkpoint's encoding, by the server's default."""
    ours: dict[int, list[str]] = {}
    for name, (mode, effort) in _modes(encoding).items():
        prompt = render_chat_prompt(QUESTION, (), mode, effort, encoding)
        ours.setdefault(len(prompt.ids(tokenizer)), []).append(name)
    try:
        count = served.prompt_tokens(QUESTION)
    except ValueError as error:
        return f"chat: not compared: {error}"
    if count in ours:
        return f"chat: by default the server's prompt has {count} tokens, as ours for {' or '.join(ours[count])}"
    known = ", ".join(f"{length} for {' or '.join(names)}" for length, names in ours.items())
    return f"chat: by default the server's prompt has {count} tokens, unlike ours ({known})"


def _models(model: str, reading: LoadOptions) -> dict[str, DeepseekV4ForCausalLM]:
    base = LoadOptions(reading.dtype, reading.numerics, reading.quantized).read(model)
    if reading.adapter is None:
        return {BASE: base}
    adapted = share_weights(base)
    load_adapter(adapted, reading.adapter)
    return {BASE: base, ADAPTER: adapted}


def _distance(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> float:
    """Mean absolute difference; servers may report fewer tokens."""
    gaps = [abs(a - b) for left, right in zip(theirs, ours, strict=True) for a, b in zip(left, right, strict=False)]
    return sum(gaps) / len(gaps) if gaps else float("inf")
