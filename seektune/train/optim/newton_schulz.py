"""Hybrid Newton-Schulz iteration: the nearest orthogonal matrix, of a batch of matrices at once.

Shapes: N matrices, R rows, C columns, S the smaller of R and C.
"""

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]

HYBRID: Coefficients = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2
"""V4 report, Algorithm 1: eight iterations that raise small singular values fast, two that bring them close to 1."""
EPS = 1e-7
"""Least norm by which a matrix is divided, as torch.optim.Muon has it; a matrix of zeros stays zero."""


def orthogonalize(x_NRC: Tensor, coefficients: Coefficients = HYBRID) -> Tensor:
    """The matrices with their singular values replaced by values near 1, `[N, R, C]` in the dtype of `x_NRC`.

    Each iteration is `X <- a X + b (X X^T) X + c (X X^T)^2 X`, of the transposed matrix if it has more rows than
    columns; products are of the dtype of `x_NRC`.
    """
    tall = x_NRC.shape[-2] > x_NRC.shape[-1]
    wide = x_NRC.mT if tall else x_NRC
    precise = torch.promote_types(wide.dtype, torch.float32)
    norm = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True, dtype=precise)
    x = wide / norm.clamp(min=EPS).to(wide.dtype)
    for a, b, c in coefficients:
        gram_NSS = torch.bmm(x, x.mT)
        polynomial_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial_NSS, x, beta=a)
    return x.mT if tall else x


def orthogonalize_reference(x_RC: Tensor, coefficients: Coefficients = HYBRID) -> Tensor:
    """The definition: the polynomials applied to the singular values of one matrix, in fp64."""
    left, singular_S, right = torch.linalg.svd(x_RC.double(), full_matrices=False)
    s = singular_S / torch.linalg.vector_norm(singular_S).clamp(min=EPS)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return left @ torch.diag(s) @ right


def iteration_flops(rows: int, columns: int) -> int:
    """Operations of the matrix products that one matrix needs in all iterations."""
    short = min(rows, columns)
    long = max(rows, columns)
    return len(HYBRID) * (4 * short * short * long + 2 * short**3)
