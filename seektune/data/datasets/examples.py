"""HellaSwag rows as token ids: the one way in which training and the exam split a prompt from its ending."""

from collections.abc import Sequence

from seektune.data.datasets.hellaswag import HellaswagRow
from seektune.data.packing import Example
from seektune.data.tokenizer import Tokenizer
from seektune.sequence import IGNORE_INDEX


def encode_continuations(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Ids of each prompt (BOS first) and of its continuation, cut as lm-evaluation-harness cuts them.

    Spaces at the end of the prompt go over to the continuation; prompt + continuation is encoded in one piece, and what
    follows the length of the prompt encoded alone is the continuation. The harness adds BOS only where a tokenizer
    does; here every prompt begins with it, since every V4 text does.
    """
    prompts = [prompt.rstrip() for prompt, _ in pairs]
    alone = tokenizer.encode_batch(prompts)
    whole = tokenizer.encode_batch([prompt + continuation for prompt, continuation in pairs])
    return [([tokenizer.bos_id, *ids], both[len(ids) :]) for ids, both in zip(alone, whole, strict=True)]


def ending_text(ending: str) -> str:
    """What follows a prompt: the ending after a space."""
    return " " + ending


def hellaswag_examples(rows: Sequence[HellaswagRow], tokenizer: Tokenizer) -> list[Example]:
    """One example per row: BOS and the prompt are read, the right ending and EOS are taught."""
    split = encode_continuations(tokenizer, [(row.prompt, ending_text(row.right)) for row in rows])
    examples = []
    for row, (prompt, ending) in zip(rows, split, strict=True):
        taught = [*ending, tokenizer.eos_id]
        examples.append(Example(prompt + taught, [IGNORE_INDEX] * len(prompt) + taught, row.name))
    return examples
