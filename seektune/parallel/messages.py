"""Asynchronous all-to-alls: an autograd function that starts one, and another that waits for it.

In backward the roles are exchanged: where forward waited, the gradient is sent, and where forward sent, backward waits.
Operations that forward has between the two are therefore between them in backward too, because torch's engine runs
what was recorded last first. Shapes: P rows sent, Q rows received, D width.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels import encode_rows
from seektune.kernels.reference.quantize import ACTIVATION_GROUP

GROUP = ACTIVATION_GROUP
"""Columns with a common scale in FP8 messages."""
functional = torch.ops._c10d_functional


class RowEncoding(Protocol):
    """How rows are sent in forward; gradients are always sent as they are."""

    def encode(self, x_PD: Tensor) -> Tensor:
        """Rows as they are sent, `[P, ...]`."""
        ...

    def decode(self, sent_Q: Tensor, like: Tensor) -> Tensor:
        """Rows as they are used, `[Q, D]`, with the dtype and width of `like`."""
        ...


class Exact:
    """Rows in their own dtype."""

    def encode(self, x_PD: Tensor) -> Tensor:
        """The rows."""
        return x_PD.contiguous()

    def decode(self, sent_Q: Tensor, like: Tensor) -> Tensor:
        """The rows."""
        return sent_Q


class Fp8:
    """E4M3 with a power-of-two scale per 128 columns, in one message of bytes: 129/256 of those of bf16.

    What arrives equals `fake_quantize_fp8(x, 128)`, and the gradient passes straight through.
    """

    def encode(self, x_PD: Tensor) -> Tensor:
        """Codes, then exponents of the scales, uint8 `[P, D + D / 128]`, both filled up to whole groups."""
        codes, scales = encode_rows(x_PD)
        padded = F.pad(codes.view(torch.uint8), (0, -x_PD.shape[1] % GROUP))
        return torch.cat([padded, scales.to(torch.float8_e8m0fnu).view(torch.uint8)], dim=1)

    def decode(self, sent_Q: Tensor, like: Tensor) -> Tensor:
        """The values of the codes."""
        width = like.shape[1]
        padded = width + -width % GROUP
        codes = sent_Q[:, :padded].view(torch.float8_e4m3fn).float().unflatten(1, (-1, GROUP))
        scale = sent_Q[:, padded:].contiguous().view(torch.float8_e8m0fnu).float()
        return (codes * scale[..., None]).flatten(1)[:, :width].to(like.dtype)


ENCODINGS: dict[str, RowEncoding] = {"model": Exact(), "fp8": Fp8()}
"""By the values of `parallel.ep_message_dtype`."""


class AllToAll:
    """An all-to-all of rows: `send_counts[r]` of them to and `receive_counts[r]` from rank r of a group."""

    def __init__(
        self,
        x_PD: Tensor,
        send_counts: Sequence[int],
        receive_counts: Sequence[int],
        group: dist.ProcessGroup,
        encoding: RowEncoding,
    ):
        """Start sending; a collective that all processes of the group call in the same order."""
        self._send_counts = list(send_counts)
        self._receive_counts = list(receive_counts)
        self._group = group
        self._encoding = encoding
        self._pending: Tensor | None = None
        self._handle_QD: Tensor | None = _Start.apply(x_PD, self)

    def wait(self) -> Tensor:
        """The received rows, `[Q, D]`; called once."""
        rows: Tensor = _Wait.apply(self._handle_QD, self)
        # its graph holds this object
        self._handle_QD = None
        return rows

    def send(self, x_PD: Tensor) -> None:
        """Start the forward direction."""
        self._start(self._encoding.encode(x_PD), self._receive_counts, self._send_counts)

    def received(self, like: Tensor) -> Tensor:
        """Wait for the forward direction."""
        return self._encoding.decode(self._take(), like)

    def send_gradient(self, grad_QD: Tensor) -> None:
        """Start the backward direction."""
        self._start(grad_QD.contiguous(), self._send_counts, self._receive_counts)

    def received_gradient(self) -> Tensor:
        """Wait for the backward direction."""
        return self._take()

    def rows(self) -> int:
        """Q."""
        return sum(self._receive_counts)

    def _start(self, x: Tensor, receive_counts: list[int], send_counts: list[int]) -> None:
        self._pending = functional.all_to_all_single(x, receive_counts, send_counts, self._group.group_name)

    def _take(self) -> Tensor:
        assert self._pending is not None, "nothing was sent"
        rows: Tensor = functional.wait_tensor(self._pending)
        self._pending = None
        return rows


class _Start(torch.autograd.Function):
    """The handle has the shape of the rows that are received, and no memory of its own."""

    @staticmethod
    def forward(ctx, x_PD, message):  # type: ignore[no-untyped-def]
        ctx.message = message
        message.send(x_PD)
        return x_PD.new_empty(()).expand(message.rows(), *x_PD.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_QD):  # type: ignore[no-untyped-def]
        return ctx.message.received_gradient(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx, handle_QD, message):  # type: ignore[no-untyped-def]
        ctx.message = message
        return message.received(handle_QD)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_QD):  # type: ignore[no-untyped-def]
        ctx.message.send_gradient(grad_QD)
        return grad_QD, None
