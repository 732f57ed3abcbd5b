"""The activation of the experts in few passes, with a backward that needs only gate and up."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.precision import upcast


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """See `reference.clamped_swiglu`."""
    out: Tensor = _SwiGLU.apply(gate, up, limit)
    return out


def weighted_swiglu(gate_PF: Tensor, up_PF: Tensor, weights_P: Tensor, limit: float) -> Tensor:
    """See `reference.weighted_swiglu`."""
    return (weights_P[:, None] * clamped_swiglu(gate_PF, up_PF, limit)).to(gate_PF.dtype)


def activate(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """`clamped_swiglu` of fp32 values, without a gradient."""
    return F.silu(gate.clamp(max=limit), inplace=True).mul_(up.clamp(-limit, limit))


def activate_with_slopes(gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """`clamped_swiglu` and its derivatives by gate and up, all fp32; derivatives of clamped elements are 0."""
    # comparisons that write floats are as fast as products, those that write bools are not
    free_gate = torch.le(gate, limit, out=torch.empty_like(gate))
    free_up = torch.le(up.abs(), limit, out=torch.empty_like(up))
    gate = gate.clamp(max=limit)
    up = up.clamp(-limit, limit)
    sigmoid = gate.sigmoid()
    silu = gate.mul_(sigmoid)
    # silu' = sigmoid + silu (1 - sigmoid)
    slope = torch.addcmul(sigmoid, silu, sigmoid, value=-1).add_(silu).mul_(up).mul_(free_gate)
    return up.mul_(silu), slope, free_up.mul_(silu)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, limit):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, up)
        ctx.limit = limit
        return activate(upcast(gate), upcast(up), limit)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gate, up = ctx.saved_tensors
        _, along_gate, along_up = activate_with_slopes(upcast(gate), upcast(up), ctx.limit)
        return along_gate.mul_(grad).to(gate.dtype), along_up.mul_(grad).to(up.dtype), None
