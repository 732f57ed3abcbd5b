"""LM head and cross-entropy in one operation, so that the logits of all tokens never exist at once."""

from torch import Tensor

from seektune.kernels.reference.token_logprobs import token_logprobs


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """Sum of `-log softmax(hidden @ weight.T)[target]` in fp32 over N tokens; no target is ignored.

    `weights_N`, fp32, multiply the tokens' terms and are constants; None is 1 for each.
    """
    logprobs_N = token_logprobs(hidden_ND, weight_VD, targets_N)
    return -(logprobs_N if weights_N is None else logprobs_N * weights_N).sum()
