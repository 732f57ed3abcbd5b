"""Questions with several endings as token ids, encoded in the same way for training and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

from seektune.data.example import Example, continuation
from seektune.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A prompt, its endings, the index of the right one, and the source."""

    prompt: str
    endings: tuple[str, ...]
    label: int
    name: str

    @property
    def right(self) -> str:
        """The right ending."""
        return self.endings[self.label]


def encode_continuations(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Ids of each prompt (BOS first) and of its continuation, cut as lm-evaluation-harness cuts them.

    Spaces at the end of the prompt go over to the continuation; prompt + continuation is encoded in one piece, and what
    follows the length of the prompt encoded alone is the continuation. The harness adds BOS only where a tokenizer
    does; here every prompt begins with it, since every V4 text does.
    """
    prompts = [prompt.rstrip() for prompt, _ in pairs]
    alone = tokenizer.encode_batch(prompts)
    whole = tokenizer.encode_batch([prompt + ending for prompt, ending in pairs])
    return [([tokenizer.bos_id, *ids], both[len(ids) :]) for ids, both in zip(alone, whole, strict=True)]


def encode_endings(tokenizer: Tokenizer, questions: Sequence[Question]) -> list[tuple[list[int], list[int]]]:
    """Ids of prompt and ending, with a space before it and EOS after it, for every ending of every question."""
    pairs = [(question.prompt, " " + ending) for question in questions for ending in question.endings]
    return [(prompt, [*ending, tokenizer.eos_id]) for prompt, ending in encode_continuations(tokenizer, pairs)]


def right_answers(questions: Sequence[Question], tokenizer: Tokenizer) -> list[Example]:
    """One example per question: BOS and the prompt are read, the right ending and EOS are taught."""
    alone = [Question(each.prompt, (each.right,), 0, each.name) for each in questions]
    encoded = encode_endings(tokenizer, alone)
    return [continuation(prompt, ending, each.name) for (prompt, ending), each in zip(encoded, questions, strict=True)]
