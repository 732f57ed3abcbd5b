"""Sends the streams of a pipeline stage to the next one.

Shapes: B rows, T tokens, S streams, D width.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from seektune.parallel.mesh import Mesh

PASSES = 2
"""Maximum forward passes of a stage between two exchanges: of running sequences, and of prompts."""


class StageLink:
    """The neighbours of this rank in its pipeline."""

    def __init__(self, mesh: Mesh, dtype: torch.dtype):
        """`dtype` is that of the streams."""
        assert mesh.axes is not None
        self.stage = mesh.coords.pp
        self.stages = mesh.dims.pp_size
        self._before = mesh.rank - mesh.dims.stage_size if self.stage > 0 else None
        self._next = mesh.rank + mesh.dims.stage_size if self.stage + 1 < self.stages else None
        self._data = mesh.axes.pipeline
        self._control = mesh.axes.control
        self._device = mesh.device
        self._dtype = dtype

    def __deepcopy__(self, _memo: object) -> "StageLink":
        """The same object: a copy of a model belongs to the same processes."""
        return self

    def exchange(self, sent: Sequence[Tensor]) -> list[Tensor]:
        """Send streams `[B, T, S, D]` to the next stage; returns those that the stage before sends.

        All ranks of the pipeline call it; nothing is under way when it has returned.
        """
        works = [] if self._next is None else self._send(sent, self._next)
        arrived = [] if self._before is None else self._receive(self._before)
        for work in works:
            work.wait()
        return arrived

    def _send(self, sent: Sequence[Tensor], rank: int) -> list[dist.Work]:
        assert len(sent) <= PASSES
        shapes = torch.zeros(PASSES, 4, dtype=torch.int64)  # in the host's memory, where the receiver needs it
        for i, x in enumerate(sent):
            shapes[i] = torch.tensor(x.shape)
        works = [dist.isend(shapes, rank, self._control)]
        works += [dist.isend(x.contiguous(), rank, self._data) for x in sent]
        return [work for work in works if work is not None]

    def _receive(self, rank: int) -> list[Tensor]:
        shapes = torch.zeros(PASSES, 4, dtype=torch.int64)
        dist.recv(shapes, rank, self._control)
        arrived = [torch.empty(shape, dtype=self._dtype, device=self._device) for shape in shapes.tolist() if shape[0]]
        for x in arrived:
            dist.recv(x, rank, self._data)
        return arrived
