"""The teachers of distillation: models on the student's mesh, whose hidden states become a column of batches.

Shapes: B rows, T tokens, E the largest width of a teacher, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.lora.state import adapters_off
from seektune.parallel.model import ParallelModel
from seektune.sequence import IGNORE_INDEX, TEACHER, TEACHER_NUMBER, Batch


class Teacher:
    """A `ReferenceModel` that adds hidden states; adapters of the model that is trained are switched off for it."""

    def __init__(self, model: ParallelModel, head_VE: Tensor | None, adapted: bool = False):
        """`adapted` says that the adapters of `model` are the teacher's own."""
        self.model = model
        self.head_VE = head_VE
        """The whole head, on processes with the last stage; None if it is the student's own."""
        self._adapted = adapted

    def own(self, batch: Batch) -> Batch:
        """As `ReferenceModel`: one more forward pass, of the teacher."""
        return batch.having(TEACHER, self.hidden(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """The hidden state from which the teacher predicts each token, `[B, T, E]`; collective."""
        stages = [] if self._adapted else self.model.stages.values()
        with adapters_off(stages):
            hidden_BTE = self.model.own_hidden(batch)
        # from the positions that predict tokens to the tokens themselves
        return F.pad(hidden_BTE[:, :-1], (0, 0, 1, 0)).to(batch.tokens.device)

    def shared(self, batch: Batch) -> Batch:
        """As `ReferenceModel`; held-out rows are measured by cross-entropy, which needs no teacher."""
        return batch


class Teachers:
    """A `ReferenceModel` of several teachers: the column `teacher_number` says which of them teaches a token.

    A teacher runs for the micro-batches in which a process has tokens for it; narrower hidden states are padded.
    """

    def __init__(self, teachers: Sequence[Teacher]):
        self.teachers = teachers
        self._width = max(each.model.config.hidden_size for each in teachers)

    def own(self, batch: Batch) -> Batch:
        """As `ReferenceModel`: one more forward pass of each teacher that is needed."""
        found_BTE: Tensor | None = None
        for number, teacher in enumerate(self.teachers):
            theirs_BT = (batch.columns[TEACHER_NUMBER] == number) & (batch.labels != IGNORE_INDEX)
            if not teacher.model.mesh.any(bool(theirs_BT.any())):
                continue
            hidden_BTE = teacher.hidden(batch)
            padded_BTE = F.pad(hidden_BTE, (0, self._width - hidden_BTE.shape[-1]))
            others_BTE = torch.zeros_like(padded_BTE) if found_BTE is None else found_BTE
            found_BTE = torch.where(theirs_BT.unsqueeze(-1), padded_BTE, others_BTE)
        assert found_BTE is not None, "something is taught in every micro-batch"
        return batch.having(TEACHER, found_BTE)

    def shared(self, batch: Batch) -> Batch:
        """As `Teacher`."""
        return batch
