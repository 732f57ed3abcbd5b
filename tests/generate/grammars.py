"""Texts that follow a grammar: random ones that soon come to an end, and whole models that write such texts."""

import random
from typing import Any

import torch

from seektune.data.tokenizer import Tokenizer
from seektune.generate.grammar import Grammar
from seektune.model.causal_lm import DeepseekV4ForCausalLM

VOCAB = 512
CPU = torch.device("cpu")


def closing_ids(tokenizer: Tokenizer) -> list[int]:
    """Tokens that end a part of an answer."""
    return [tokenizer.eos_id, *(tokenizer.encode(sign)[0] for sign in '"}],<')]


def random_text(grammar: Grammar, tokenizer: Tokenizer, seed: int = 0, most: int = 400) -> str | None:
    """A text that follows a grammar, of tokens chosen by chance; None if it is not complete after `most`."""
    generator = random.Random(seed)
    closing = closing_ids(tokenizer)
    state = grammar.start()
    ids: list[int] = []
    while len(ids) < most:
        allowed = state.allowed(CPU).nonzero().flatten().tolist()
        ends = [token for token in closing if token in allowed]
        ids.append(generator.choice(ends if ends and generator.random() < 0.5 else allowed))
        state.accept(ids[-1])
        assert not state.failed
        if ids[-1] == tokenizer.eos_id:
            return tokenizer.decode(ids[:-1])
    return None


def terse(model: DeepseekV4ForCausalLM, tokenizer: Tokenizer) -> DeepseekV4ForCausalLM:
    """Make a model more likely to end a part of an answer; otherwise its strings would have hundreds of tokens."""
    logits = model.logits
    closing = closing_ids(tokenizer)

    def biased(hidden: Any) -> Any:
        found = logits(hidden)
        found[..., closing] += 6
        return found

    model.__setattr__("logits", biased)
    return model
