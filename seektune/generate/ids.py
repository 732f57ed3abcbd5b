"""Ids in, longer ids out: what `model.generate` does.

Shapes: B rows, T tokens, N new tokens.
"""

import torch
from torch import Tensor

from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import Sampling
from seektune.model.causal_lm import DeepseekV4ForCausalLM


def continued(
    model: DeepseekV4ForCausalLM,
    ids_BT: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    speculative: bool = False,
) -> Tensor:
    """Rows with up to `max_new_tokens` more, `[B, T + N]`; a row ends with EOS, and shorter ones are filled with it.

    Args:
        model: that speaks.
        ids_BT: rows without padding.
        max_new_tokens: most of a row.
        sampling: how tokens are drawn.
        seed: of the first row; each further row has the next one.
        speculative: let the MTP block guess ahead.

    Raises:
        ValueError: `max_new_tokens` is not positive, or the model has no MTP block.
    """
    eos = model.config.eos_token_id
    requests = [
        Request(row, max_new_tokens, sampling, frozenset({eos}), seed=seed + i) for i, row in enumerate(ids_BT.tolist())
    ]
    grown: list[list[int]] = [[] for _ in requests]
    for token in DecodeEngine(model, requests, speculative).tokens():
        grown[token.request].append(token.id)
    longest = max(map(len, grown))
    new = torch.tensor([[*row, *[eos] * (longest - len(row))] for row in grown], device=ids_BT.device)
    return torch.cat([ids_BT, new.to(ids_BT.dtype)], dim=1)
