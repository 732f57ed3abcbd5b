"""HellaSwag as an exam: which of four endings does the model find most likely, scored as others score it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seektune.data.datasets.examples import encode_continuations, ending_text
from seektune.data.datasets.hellaswag import HellaswagRow
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.likelihood import Likelihood, Progress, Scorer, continuation, likelihoods
from seektune.evaluate.multiple_choice import ChoicePrompt, choice_likelihoods
from seektune.evaluate.statistics import Change, Estimate
from seektune.model.causal_lm import DeepseekV4ForCausalLM


@dataclass(frozen=True)
class HellaswagScore:
    """What the exam found."""

    acc: Estimate
    """Right answers by the summed log-likelihood of the ending."""
    acc_norm: Estimate
    """Right answers by that divided by the characters of the ending."""
    n: int
    """Number of questions."""
    loss: float
    """Mean negative log-likelihood, in nats per token, of the right endings and their EOS."""
    loss_tokens: int
    """Tokens that `loss` is a mean of."""
    right: str
    """1 or 0 for each question in order: what `acc` is the mean of."""
    right_norm: str
    """The same for `acc_norm`."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HellaswagScore":
        """Back from `to_dict()`."""
        return cls(**{**values, "acc": Estimate(**values["acc"]), "acc_norm": Estimate(**values["acc_norm"])})

    def since(self, before: "HellaswagScore") -> dict[str, Change]:
        """What changed from another model's score on the same questions to this one."""
        return {
            "acc": Change.of_shares(_outcomes(before.right), _outcomes(self.right)),
            "acc_norm": Change.of_shares(_outcomes(before.right_norm), _outcomes(self.right_norm)),
        }


def spread_evenly(rows: Sequence[HellaswagRow], limit: int | None) -> list[HellaswagRow]:
    """At most `limit` rows, taken at even distances: the split is sorted by where its texts come from."""
    count = len(rows) if limit is None else min(limit, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def evaluate_hellaswag(
    model: Scorer,
    tokenizer: Tokenizer,
    rows: Sequence[HellaswagRow],
    batch_tokens: int,
    progress: Progress | None = None,
) -> HellaswagScore:
    """Score a model as lm-evaluation-harness does (task `hellaswag`, no examples before the question).

    An ending is scored by the sum of the log-likelihoods of the tokens of " " + ending after the prompt; `acc` takes
    the likeliest, `acc_norm` the likeliest per character of the ending (without that space). Prompt and ending are
    encoded in one piece and cut at the length of the prompt alone (`encode_continuations`). Two choices are ours: the
    prompt begins with BOS, and EOS after the right ending counts in `loss` (not in the scores), because it is taught.

    Args:
        model: whose knowledge is asked.
        tokenizer: the one the model is trained with.
        rows: questions, usually of the raw validation split.
        batch_tokens: most tokens, padding included, of one forward (a longer ending is run alone).
        progress: is told after each forward how many endings are done.

    Raises:
        ArithmeticError: the model gives no number for an ending; the message names the row.
    """
    assert rows, "an exam needs questions"
    asked = [(row.prompt, ending_text(ending)) for row in rows for ending in row.endings]
    split = [(prompt, [*ending, tokenizer.eos_id]) for prompt, ending in encode_continuations(tokenizer, asked)]
    if isinstance(model, DeepseekV4ForCausalLM):
        # a whole model on one device reads a prompt once for its endings
        choices = [
            ChoicePrompt(split[i][0], [ending for _, ending in split[i : i + 4]]) for i in range(0, len(split), 4)
        ]
        found = choice_likelihoods(model, choices, batch_tokens, progress)
    else:
        sequences = [continuation(prompt, ending, rows[i // 4].name) for i, (prompt, ending) in enumerate(split)]
        found = likelihoods(model, sequences, batch_tokens, tokenizer.pad_id, progress)
    return _score(rows, found)


def _score(rows: Sequence[HellaswagRow], found: Sequence[Likelihood]) -> HellaswagScore:
    right = []
    right_norm = []
    taught: list[float] = []
    for i, row in enumerate(rows):
        answers = [each.losses for each in found[4 * i : 4 * i + 4]]
        # The last token is EOS, which the harness does not score.
        sums = [-math.fsum(answer[:-1]) for answer in answers]
        if any(math.isnan(value) for value in sums):
            raise ArithmeticError(f"{row.name}: the model's log-likelihood of an ending is not a number")
        per_character = [value / len(ending) for value, ending in zip(sums, row.endings, strict=True)]
        right.append(sums.index(max(sums)) == row.label)
        right_norm.append(per_character.index(max(per_character)) == row.label)
        taught += answers[row.label]
    return HellaswagScore(
        acc=Estimate.of_share(right),
        acc_norm=Estimate.of_share(right_norm),
        n=len(rows),
        loss=math.fsum(taught) / len(taught),
        loss_tokens=len(taught),
        right=_written(right),
        right_norm=_written(right_norm),
    )


def _written(outcomes: Sequence[bool]) -> str:
    return "".join("1" if outcome else "0" for outcome in outcomes)


def _outcomes(written: str) -> list[bool]:
    return [sign == "1" for sign in written]
