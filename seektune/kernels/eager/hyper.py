"""Hyper-connections in one pass over the streams each way; they are memory-bound, so tokens are processed in chunks.

Shapes: N tokens, S streams, D width, O = S * (2 + S) outputs of the router.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.norm import parts
from seektune.kernels.eager.sinkhorn import sinkhorn
from seektune.kernels.reference.precision import upcast


def hyper_read(
    streams_NSD: Tensor,
    fn_OI: Tensor,
    base_O: Tensor,
    scale_3: Tensor,
    iterations: int,
    eps: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.hyper_read`; tokens may have several dims.

    Saves the inputs and the router's outputs, O + 1 numbers per token.
    """
    y_ND, write_NS, logits_NSS = hyper_route(streams_NSD, fn_OI, base_O, scale_3, eps, norm_eps)
    return y_ND, write_NS, sinkhorn(logits_NSS, iterations, eps)


def hyper_route(
    streams_NSD: Tensor, fn_OI: Tensor, base_O: Tensor, scale_3: Tensor, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `hyper_read`, with the logits of the mixing weights, `[N, S, S]`, instead of the weights."""
    tokens = streams_NSD.shape[:-2]
    y_ND, write_NS, logits_NSS = _Route.apply(streams_NSD.flatten(0, -3), fn_OI, base_O, scale_3, eps, norm_eps)
    return tuple(x.view(*tokens, *x.shape[1:]) for x in (y_ND, write_NS, logits_NSS))


def hyper_write(streams_NSD: Tensor, y_ND: Tensor, write_NS: Tensor, mix_NSS: Tensor) -> Tensor:
    """See `reference.hyper_write`; tokens may have several dims."""
    out: Tensor = _Write.apply(streams_NSD, y_ND, write_NS, mix_NSS)
    return out


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx, streams_NSD, fn_OI, base_O, scale_3, eps, norm_eps):  # type: ignore[no-untyped-def]
        tokens, n, width = streams_NSD.shape
        u_NO = fn_OI.new_empty(tokens, len(base_O))
        inverse_N = fn_OI.new_empty(tokens, 1)
        y_ND = streams_NSD.new_empty(tokens, width)
        scale_O = per_output(scale_3, n)
        for part in parts(streams_NSD):
            x = upcast(streams_NSD[part])
            flat = x.flatten(1)
            square = torch.linalg.vector_norm(flat, dim=1, keepdim=True).square_()
            inverse = torch.rsqrt_(square.div_(n * width).add_(norm_eps))
            u = (flat @ fn_OI.T) * inverse  # not in place, because recomputation keeps the product
            read = torch.addcmul(base_O[:n], u[:, :n], scale_O[:n]).sigmoid_().add_(eps)
            y = y_ND[part].unsqueeze(1)
            _store(y, torch.bmm(read.unsqueeze(1), x, out=_fp32_buffer(y)))
            u_NO[part], inverse_N[part] = u, inverse
        write_NS = torch.addcmul(base_O[n : 2 * n], u_NO[:, n : 2 * n], scale_O[n : 2 * n]).sigmoid_().mul_(2)
        logits_NSS = torch.addcmul(base_O[2 * n :], u_NO[:, 2 * n :], scale_3[2]).unflatten(1, (n, n))
        ctx.save_for_backward(streams_NSD, fn_OI, base_O, scale_3, u_NO, inverse_N)
        ctx.eps = eps
        return y_ND, write_NS, logits_NSS

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_ND, dwrite_NS, dlogits_NSS):  # type: ignore[no-untyped-def]
        streams_NSD, fn_OI, base_O, scale_3, u_NO, inverse_N = ctx.saved_tensors
        n, width = streams_NSD.shape[1:]
        scale_O = per_output(scale_3, n)
        read_NS, write_NS = (base_O[: 2 * n] + u_NO[:, : 2 * n] * scale_O[: 2 * n]).sigmoid_().split(n, dim=1)
        dlogits_NO = torch.empty_like(u_NO)
        dlogits_NO[:, n : 2 * n] = dwrite_NS * write_NS * (1 - write_NS) * 2
        dlogits_NO[:, 2 * n :] = dlogits_NSS.flatten(1)
        # contiguous, so that `flatten` below is a view to write through
        dstreams_NSD = torch.empty_like(streams_NSD, memory_format=torch.contiguous_format)
        dfn_OI = torch.zeros_like(fn_OI)
        for part in parts(streams_NSD):
            x = upcast(streams_NSD[part])
            dy = upcast(dy_ND[part])
            read = read_NS[part]
            inverse = inverse_N[part]
            dread = (x * dy.unsqueeze(1)).sum(dim=-1)
            dlogits_NO[part, :n] = dread.mul_(read).mul_(1 - read)
            du = dlogits_NO[part] * scale_O
            # gradient of u = (fn x) / rms(x): the product's part, minus the norm's part along x
            shrink = (du * u_NO[part]).sum(dim=1, keepdim=True).mul_(inverse.square()).div_(-n * width)
            du.mul_(inverse)
            dx = torch.mul(x, shrink.unsqueeze(2), out=_fp32_buffer(dstreams_NSD[part]))
            torch.addmm(dx.flatten(1), du, fn_OI, out=dx.flatten(1))
            _store(dstreams_NSD[part], dx.addcmul_((read + ctx.eps).unsqueeze(2), dy.unsqueeze(1)))
            torch.addmm(dfn_OI, du.T, x.flatten(1), out=dfn_OI)
        dscale_O = (dlogits_NO * u_NO).sum(dim=0)
        dscale_3 = torch.stack([part.sum() for part in dscale_O.split([n, n, n * n])])
        return dstreams_NSD, dfn_OI, dlogits_NO.sum(dim=0), dscale_3, None, None


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx, streams_NSD, y_ND, write_NS, mix_NSS):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(streams_NSD, y_ND, write_NS, mix_NSS)
        # the result must not be a view, because pipelines detach it in place
        out = torch.empty_like(streams_NSD, memory_format=torch.contiguous_format)
        out_NSD = _by_token(out, 2)
        streams_NSD = _by_token(streams_NSD, 2)
        y_ND = _by_token(y_ND, 1)
        write_NS = _by_token(write_NS, 1)
        mix_NSS = _by_token(mix_NSS, 2)
        for part in parts(streams_NSD):
            mixed = _fp32_buffer(out_NSD[part])
            torch.bmm(mix_NSS[part].mT, upcast(streams_NSD[part]), out=mixed)
            mixed.addcmul_(write_NS[part].unsqueeze(2), upcast(y_ND[part]).unsqueeze(1))
            _store(out_NSD[part], mixed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NSD):  # type: ignore[no-untyped-def]
        saved = ctx.saved_tensors
        streams_NSD, y_ND, write_NS, mix_NSS = (_by_token(x, dims) for x, dims in zip(saved, (2, 1, 1, 2), strict=True))
        grad_NSD = _by_token(grad_NSD, 2)
        dstreams_NSD = torch.empty_like(streams_NSD)
        dy_ND = torch.empty_like(y_ND)
        dwrite_NS = torch.empty_like(write_NS)
        dmix_NSS = torch.empty_like(mix_NSS)
        for part in parts(streams_NSD):
            grad = upcast(grad_NSD[part])
            _store(dstreams_NSD[part], torch.bmm(mix_NSS[part], grad, out=_fp32_buffer(dstreams_NSD[part])))
            dy = dy_ND[part].unsqueeze(1)
            _store(dy, torch.bmm(write_NS[part].unsqueeze(1), grad, out=_fp32_buffer(dy)))
            dwrite_NS[part] = (grad * upcast(y_ND[part]).unsqueeze(1)).sum(dim=-1)
            dmix_NSS[part] = torch.bmm(upcast(streams_NSD[part]), grad.mT)
        found = dstreams_NSD, dy_ND, dwrite_NS, dmix_NSS
        return tuple(gradient.view(x.shape) for gradient, x in zip(found, saved, strict=True))


def _by_token(x: Tensor, dims: int) -> Tensor:
    """Flatten all dims before the last `dims` into one token dim."""
    return x.flatten(0, -dims - 1)


def _fp32_buffer(out: Tensor) -> Tensor:
    """A buffer for the fp32 values of `out`: `out` itself unless its precision is lower."""
    wide = upcast(out[:0]).dtype
    return out if out.dtype == wide else torch.empty_like(out, dtype=wide)


def _store(out: Tensor, values: Tensor) -> None:
    if values.dtype != out.dtype:
        out.copy_(values)


def per_output(scale_3: Tensor, n: int) -> Tensor:
    """The scale of each router output: one for read, one for write, one for mix."""
    return torch.cat([scale_3[0].expand(n), scale_3[1].expand(n), scale_3[2].expand(n * n)])
