from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.sequence import IGNORE_INDEX


class Bigram(nn.Module):
    """A model whose next-token scores depend on the last token alone; it keeps the shapes it was called with."""

    def __init__(self, vocab_size: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(2 * torch.randn(vocab_size, vocab_size, generator=generator))
        self.shapes: list[tuple[int, ...]] = []
        self.graded = False

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        documents: Tensor | None = None,
        with_logits: bool = True,
    ) -> SimpleNamespace:
        assert documents is not None
        self.shapes.append(tuple(input_ids.shape))
        self.graded |= torch.is_grad_enabled()
        logits = self.table[input_ids]
        if labels is None:
            return SimpleNamespace(logits=logits, loss=None)
        together = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] != 0)
        targets = torch.where(together, labels[:, 1:], IGNORE_INDEX)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
        return SimpleNamespace(logits=logits if with_logits else None, loss=loss)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(512)


@pytest.fixture
def bigram() -> Bigram:
    return Bigram(512)
