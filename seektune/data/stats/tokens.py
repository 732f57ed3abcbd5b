"""Counts in the tokens of examples: scripts of their texts, and reasoning that ends at once."""

from collections.abc import Sequence

import numpy as np

from seektune.data.chat_format.tokens import THINK, THINK_END
from seektune.data.example import Example
from seektune.data.stats.dataset_stats import DatasetStats
from seektune.data.stats.scripts import count_scripts
from seektune.data.tokenizer import Tokenizer


class TokenCounter:
    """Counts of examples of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._control = np.array(sorted(tokenizer.control_ids))
        self._think = tokenizer.control_id(THINK)
        self._think_end = tokenizer.control_id(THINK_END)

    def add(self, examples: Sequence[Example], stats: DatasetStats) -> None:
        """Add the counts of a row's examples to the statistics."""
        for example in examples:
            tokens = np.asarray(example.tokens)
            taught = np.asarray(example.taught)
            ends = (tokens[:-1] == self._think) & (tokens[1:] == self._think_end) & taught[1:]
            stats.empty_reasoning += int(ends.sum())
            plain = ~np.isin(tokens, self._control)
            stats.scripts += count_scripts(self._tokenizer.decode(tokens[plain].tolist()))
            stats.taught_scripts += count_scripts(self._tokenizer.decode(tokens[plain & taught].tolist()))
