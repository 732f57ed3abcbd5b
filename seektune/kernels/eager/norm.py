"""RMSNorm and rotation that save one number per vector in addition to tensors that live anyway.

Shapes: B rows, T tokens, H heads, C width, R rotated pairs.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.precision import upcast

ELEMENTS = 2**17
"""Elements of a chunk, which stays in a core's cache between operations."""
ON_GPU = 2**26
"""Elements of a chunk on a GPU, where launches are expensive and chunks only bound the memory of fp32 values."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    out: Tensor = _RMSNormFunction.apply(x, weight, eps)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `reference.rotate`."""
    out: Tensor = _Rotate.apply(x, cos, sin)
    return out


def norm_rope(x_BTHC: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, eps: float) -> Tensor:
    """See `reference.norm_rope`. Saves the result, which attention saves too, instead of `x`."""
    out: Tensor = _NormRope.apply(x_BTHC, cos_BTR, sin_BTR, eps)
    return out


def parts(x_NC: Tensor) -> list[slice]:
    """Chunks of adjacent vectors."""
    size = max((ON_GPU if x_NC.is_cuda else ELEMENTS) // max(x_NC[:1].numel(), 1), 16)
    return [slice(start, start + size) for start in range(0, len(x_NC), size)]


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """`1 / sqrt(mean(x^2) + eps)` of fp32 vectors `[N, C]` in one pass, `[N, 1]`."""
    square = torch.linalg.vector_norm(x, dim=1, keepdim=True).square_()
    return square.div_(x.shape[1]).add_(eps).rsqrt_()


class _RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        flat = x.reshape(-1, x.shape[-1])
        w = upcast(weight)
        # allocated in its final shape: returning a view would cause warnings in wrapped modules
        whole = torch.empty_like(x, memory_format=torch.contiguous_format)
        out = whole.view(flat.shape)
        inverse = w.new_empty(len(flat), 1, dtype=upcast(x[..., :0]).dtype)
        for part in parts(flat):
            vectors = upcast(flat[part])
            inverse[part] = inverse_rms(vectors, eps)
            out[part] = (vectors * inverse[part]).mul_(w)
        ctx.save_for_backward(x, weight, inverse)
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, inverse = ctx.saved_tensors
        flat = x.reshape(-1, x.shape[-1])
        above = grad.reshape(-1, x.shape[-1])
        w = upcast(weight)
        dx = torch.empty_like(flat)
        dweight = torch.zeros_like(w, dtype=inverse.dtype)
        for part in parts(flat):
            unit = upcast(flat[part]) * inverse[part]
            dy = upcast(above[part])
            slope = dy * unit
            dweight += slope.sum(dim=0)
            along = slope.mul_(w).mean(dim=1, keepdim=True)
            dx[part] = (dy * w).addcmul_(unit, along, value=-1).mul_(inverse[part])
        return dx.view(x.shape), dweight.to(weight.dtype), None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cos, sin)
        return rotate_complex(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        cos, sin = ctx.saved_tensors
        return rotate_complex(grad, cos, -sin), None, None


def rotate_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` as a product of complex numbers."""
    columns = 2 * cos.shape[-1]
    tail = upcast(x[..., x.shape[-1] - columns :]).unflatten(-1, (-1, 2)).contiguous()
    if tail.storage_offset() % 2:
        tail = tail.clone()  # complex views need an even storage offset
    angles = torch.complex(cos, sin).to(torch.view_as_complex(tail).dtype)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[..., : x.shape[-1] - columns] = x[..., : x.shape[-1] - columns]
    out[..., x.shape[-1] - columns :] = torch.view_as_real(torch.view_as_complex(tail) * angles).flatten(-2)
    return out


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BTHC, cos_BTR, sin_BTR, eps):  # type: ignore[no-untyped-def]
        cos, sin = (x.flatten(0, 1).unsqueeze(1) for x in (cos_BTR, sin_BTR))
        tokens = x_BTHC.flatten(0, 1)
        out = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        heads = tokens.shape[1]
        inverse = upcast(x_BTHC[..., :1]).flatten(0, 1).clone(memory_format=torch.contiguous_format)
        for part in parts(tokens):
            vectors = upcast(tokens[part]).flatten(0, 1)
            inverse[part] = inverse_rms(vectors, eps).view(-1, heads, 1)
            unit = vectors.view(-1, *tokens.shape[1:]) * inverse[part]
            out[part] = rotate_complex(unit.to(x_BTHC.dtype), cos[part], sin[part])
        out = out.view(x_BTHC.shape)
        ctx.save_for_backward(out, inverse, cos, sin)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTHC):  # type: ignore[no-untyped-def]
        out, inverse, cos, sin = ctx.saved_tensors
        tokens = out.flatten(0, 1)
        above = grad_BTHC.flatten(0, 1)
        dx = torch.empty_like(tokens)
        for part in parts(tokens):
            unit = upcast(tokens[part]).clone()
            dy = upcast(above[part])
            # rotated vector · dy = vector · (dy rotated back)
            along = (unit * dy).mean(dim=-1, keepdim=True)
            # rotating back does not restore the length, which rounded angles change a little
            length = (cos[part].to(unit.dtype).square() + sin[part].to(unit.dtype).square()).repeat_interleave(
                2, dim=-1
            )
            unit[..., unit.shape[-1] - length.shape[-1] :] /= length
            dx[part] = rotate_complex((dy - unit * along).mul_(inverse[part]), cos[part], -sin[part])
        return dx.view(out.shape), None, None, None
