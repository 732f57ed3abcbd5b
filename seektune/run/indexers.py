"""Which weights a run trains if it trains indexers."""

from seektune.model.indexer import INDEXERS
from seektune.model.transformer import TransformerPart
from seektune.parallel.parallelize import Prepare, unchanged


def indexer_trainer(warmup: bool, before: Prepare = unchanged) -> Prepare:
    """A function that makes indexers trainable, after `before`; in a warm-up it freezes everything else."""

    def prepare(part: TransformerPart) -> None:
        before(part)
        for name, parameter in part.named_parameters():
            if INDEXERS in name or warmup:
                parameter.requires_grad_(INDEXERS in name)

    return prepare
