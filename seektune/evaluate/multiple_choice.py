"""Log-likelihoods of several endings of one prompt, which is computed once for all of them.

Shapes: B endings, P prompts, T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.evaluate.likelihood import Likelihood, Progress, by_length
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.sequence import IGNORE_INDEX


@dataclass(frozen=True)
class ChoicePrompt:
    """A prompt and its endings as ids; none is empty."""

    prompt: list[int]
    endings: list[list[int]]

    @property
    def size(self) -> int:
        """Number of tokens, with all endings padded to the longest."""
        return len(self.prompt) + len(self.endings) * max(map(len, self.endings))


@torch.no_grad()
def choice_likelihoods(
    model: DeepseekV4ForCausalLM, questions: Sequence[ChoicePrompt], batch_tokens: int, progress: Progress | None = None
) -> list[Likelihood]:
    """The likelihood of every ending, question by question: the result of `likelihoods` with less computation.

    Args:
        model: the model.
        questions: prompts with their endings.
        batch_tokens: maximum tokens, padding included, of the prompts and endings of one forward (a longer
            question is read alone).
        progress: called after each batch with the number of finished endings.
    """
    found: list[list[Likelihood]] = [[] for _ in questions]
    done = 0
    total = sum(len(question.endings) for question in questions)
    for group in by_length([question.size for question in questions], batch_tokens):
        asked = [questions[i] for i in group]
        answers = iter(_together(model, asked))
        for i, question in zip(group, asked, strict=True):
            found[i] = [next(answers) for _ in question.endings]
            done += len(question.endings)
        if progress is not None:
            progress(done, total)
    return [each for answers in found for each in answers]


def _together(model: DeepseekV4ForCausalLM, questions: Sequence[ChoicePrompt]) -> list[Likelihood]:
    device = model.embed.weight.device
    prompts, counts = _padded([question.prompt for question in questions], 0, device)
    longest = max(len(question.prompt) + max(map(len, question.endings)) for question in questions)
    cache = model.new_cache(len(questions), longest, rollback=0)
    streams = model.advance(prompts, cache, counts)
    ends = torch.stack([row[count - 1] for row, count in zip(streams, counts, strict=True)])
    owners = [i for i, question in enumerate(questions) for _ in question.endings]
    endings = [ending for question in questions for ending in question.endings]
    # the prompt's last token predicts the first of an ending, whose last predicts nothing
    read, most = _padded([ending[:-1] for ending in endings], 0, device)
    hidden_BTD = model.hidden(ends[owners].unsqueeze(1))
    if max(most):
        streams = model.advance(read, cache.select(owners), most)
        hidden_BTD = torch.cat([hidden_BTD, model.hidden(streams)], dim=1)
    targets_BT, sizes = _padded(endings, IGNORE_INDEX, device)
    scores = model.scores_at(hidden_BTD, targets_BT)
    losses_BT = scores.losses_BT.double().cpu()
    first_BT = scores.first_BT.cpu()
    return [
        Likelihood(losses[:size].tolist(), bool(first[:size].all()))
        for losses, first, size in zip(losses_BT, first_BT, sizes, strict=True)
    ]


def _padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[Tensor, list[int]]:
    """Padded rows `[B, T]`, and their lengths."""
    counts = [len(row) for row in rows]
    values = [[*row, *[fill] * (max(counts) - len(row))] for row in rows]
    return torch.tensor(values, dtype=torch.int64, device=device), counts
