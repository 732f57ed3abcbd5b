"""The teacher of distillation: a model on the student's mesh, whose hidden states become a column of batches.

Shapes: B rows, T tokens, E the teacher's width, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

from seektune.lora.state import adapters_off
from seektune.parallel.model import ParallelModel
from seektune.sequence import TEACHER, Batch


class Teacher:
    """A `ReferenceModel` that adds hidden states; adapters, if the model has any, are switched off for it."""

    def __init__(self, model: ParallelModel, head_VE: Tensor | None):
        self._model = model
        self.head_VE = head_VE
        """The whole head, on processes with the last stage; None if it is the student's own."""

    def own(self, batch: Batch) -> Batch:
        """As `ReferenceModel`: one more forward pass, of the teacher."""
        with adapters_off(self._model.stages.values()):
            hidden_BTE = self._model.own_hidden(batch)
        # from the positions that predict tokens to the tokens themselves
        moved_BTE = F.pad(hidden_BTE[:, :-1], (0, 0, 1, 0)).to(batch.tokens.device)
        return Batch(batch.tokens, batch.labels, batch.documents, {**batch.columns, TEACHER: moved_BTE})

    def shared(self, batch: Batch) -> Batch:
        """As `ReferenceModel`; held-out rows are measured by cross-entropy, which needs no teacher."""
        return batch
