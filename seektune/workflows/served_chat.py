"""What a server's tokens are, and whether its chat prompts are those of a checkpoint's encoding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.served_model import ServedChat, ServedModel

BEST = 5
"""Most likely tokens whose log-probabilities are compared after each prompt; servers often allow no more."""
QUESTION = ({"role": "user", "content": "What is 17 times 23?"},)
ID = "token_id:"
"""Begins what vLLM calls a token, if asked for ids."""


@dataclass(frozen=True)
class TokenNames:
    """The ids of tokens by what servers call them."""

    ids: Mapping[str, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> "TokenNames":
        """Of a model's tokens: texts that name one token, ids, and bytes as our own server writes them."""
        names: dict[str, int] = {}
        ambiguous: set[str] = set()
        for id in range(vocab_size):
            name = tokenizer.name_of(id)
            ambiguous |= {name} & names.keys()
            names[name] = id
            names[f"{ID}{id}"] = id
        return cls({name: id for name, id in names.items() if name not in ambiguous})

    def identify(self, named: Mapping[str, float]) -> dict[int, float]:
        """The values by token id; a name that is no token's, such as a replacement character, is left out."""
        return {self.ids[name]: value for name, value in named.items() if name in self.ids}

    def identified(self, named: Mapping[str, float]) -> dict[int, float]:
        """As `identify`.

        Raises:
            ValueError: no name is that of a token.
        """
        found = self.identify(named)
        if not found:
            raise ValueError(f"the server names tokens that are not the model's, such as {next(iter(named))!r}")
        return found


def chat_sentence(
    served: ServedModel, tokenizer: Tokenizer, encoding: EncodingName, names: TokenNames, tolerance: float
) -> str:
    """Whether a chat prompt of the server, by its default options, is one of the checkpoint's encoding.

    Compared are token ids, if the server gives them. If not, the number of tokens, and the log-probabilities of the
    next token: the server is given our prompts as ids, and two that differ by at most `tolerance` nats are the same.
    """
    ours = _prompts(tokenizer, encoding)
    try:
        chat = served.chat(QUESTION, BEST)
        return "chat: by default the server's prompt " + (
            _by_ids(chat.prompt_ids, ours)
            if chat.prompt_ids is not None
            else _by_length(served, chat, ours, names, tolerance)
        )
    except ValueError as error:
        return f"chat: not compared: {error}"


def _by_ids(ids: tuple[int, ...], ours: Mapping[tuple[int, ...], str]) -> str:
    if ids in ours:
        return f"is ours for {ours[ids]}, token for token"
    nearest = max(ours, key=lambda prompt: _equal(prompt, ids))
    return (
        f"of {len(ids)} tokens is none of ours; it differs from that for {ours[nearest]} after {_equal(nearest, ids)}"
    )


def _equal(left: Sequence[int], right: Sequence[int]) -> int:
    """The number of equal tokens at the start."""
    pairs = zip(left, right, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _by_length(
    served: ServedModel, chat: ServedChat, ours: Mapping[tuple[int, ...], str], names: TokenNames, tolerance: float
) -> str:
    alike = [ids for ids in ours if len(ids) == chat.prompt_tokens]
    if not alike:
        known = ", ".join(f"{len(ids)} for {name}" for ids, name in ours.items())
        return f"has {chat.prompt_tokens} tokens, unlike ours ({known})"
    as_many = f"has {chat.prompt_tokens} tokens, as ours for {' or '.join(ours[ids] for ids in alike)}"
    found = names.identify(chat.best)
    if not found:
        return f"{as_many}; it gives nothing else to compare"
    gaps = {ids: _gap(found, names.identified(served.best_logprobs(ids, BEST))) for ids in alike}
    nearest = min(gaps, key=lambda ids: gaps[ids])
    what = f"ours for {ours[nearest]}" if gaps[nearest] <= tolerance else "none of them"
    return f"{as_many}; by the next token's log-probabilities it is {what} ({gaps[nearest]:.4f} nats)"


def _gap(left: Mapping[int, float], right: Mapping[int, float]) -> float:
    """Mean absolute difference over the tokens of both, infinite if there are none."""
    gaps = [abs(left[token] - right[token]) for token in left.keys() & right.keys()]
    return sum(gaps) / len(gaps) if gaps else float("inf")


def _prompts(tokenizer: Tokenizer, encoding: EncodingName) -> dict[tuple[int, ...], str]:
    """What modes and efforts have each prompt."""
    efforts = [effort for effort in find_encoding(encoding).efforts if effort is not None]
    modes: list[tuple[str, str, str | None]] = [("chat", "chat", None), ("thinking", "thinking", None)]
    modes += [(f"thinking with effort {effort}", "thinking", effort) for effort in efforts]
    found: dict[tuple[int, ...], str] = {}
    for name, mode, effort in modes:
        ids = tuple(render_chat_prompt(QUESTION, (), mode, effort, encoding).ids(tokenizer))
        found[ids] = f"{found[ids]} or {name}" if ids in found else name
    return found
