"""Fill-in-the-middle: documents rearranged so that a model learns to write what stands between two texts.

Bavarian et al. 2022, arXiv 2207.14255; with the tokens and the order of DeepSeek-Coder.
"""

import hashlib
import random
from dataclasses import dataclass

from seektune.data.chat_format.pieces import ChatText, Piece, from_format
from seektune.data.chat_format.tokens import BOS, EOS

BEGIN = "<｜fim▁begin｜>"
HOLE = "<｜fim▁hole｜>"
END = "<｜fim▁end｜>"


@dataclass(frozen=True)
class FillInMiddle:
    """Rearranges a share of documents. What becomes of a document depends on its text and the seed alone."""

    rate: float
    """Share of the documents that are rearranged."""
    spm_share: float
    """Share of these with the suffix first."""
    seed: int

    def rearranged(self, document: ChatText, text: str) -> ChatText:
        """The document of a text, cut at two random characters and rearranged; or as it is.

        Prefix first (PSM): begin, prefix, hole, suffix, end, middle. Suffix first (SPM): begin, hole, suffix, end,
        prefix, middle. All but BOS is taught, as in any document.
        """
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(self.seed).encode()).digest()
        generator = random.Random(int.from_bytes(digest))
        if generator.random() >= self.rate:
            return document
        first, second = sorted(generator.randrange(len(text) + 1) for _ in range(2))
        prefix = Piece(text[:first], taught=True)
        middle = Piece(text[first:second], taught=True)
        suffix = Piece(text[second:], taught=True)
        suffix_first = (_control(BEGIN), _control(HOLE), suffix, _control(END), prefix, middle)
        prefix_first = (_control(BEGIN), prefix, _control(HOLE), suffix, _control(END), middle)
        parts = suffix_first if generator.random() < self.spm_share else prefix_first
        return ChatText((*from_format(BOS), *(part for part in parts if part.text), _control(EOS)))


def _control(token: str) -> Piece:
    return Piece(token, control=True, taught=True)
