import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.model.head import TokenScores
from seektune.sequence import IGNORE_INDEX, Batch


class Bigram(nn.Module):
    """A model whose next-token scores depend on the last token alone; it keeps the shapes it was called with."""

    def __init__(self, vocab_size: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(2 * torch.randn(vocab_size, vocab_size, generator=generator))
        self.shapes: list[tuple[int, ...]] = []
        self.graded = False

    def score(self, batch: Batch) -> TokenScores:
        self.shapes.append(tuple(batch.tokens.shape))
        self.graded |= torch.is_grad_enabled()
        together = (batch.documents[:, 1:] == batch.documents[:, :-1]) & (batch.documents[:, 1:] != 0)
        targets = torch.where(together, batch.labels[:, 1:], IGNORE_INDEX)
        logits = self.table[batch.tokens[:, :-1]]
        losses = cross_entropy(logits.mT, targets, ignore_index=IGNORE_INDEX, reduction="none")
        first = (logits.argmax(-1) == targets) & (targets != IGNORE_INDEX)
        return TokenScores(pad(losses, (0, 1)), pad(first, (0, 1)))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(512)


@pytest.fixture
def bigram() -> Bigram:
    return Bigram(512)
