"""Token ids in, longer token ids out: implements `model.generate`.

Shapes: B rows, T tokens, N new tokens.
"""

import torch
from torch import Tensor

from seektune.generate.decodable import DecodableModel
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import Sampling


def generate_ids(
    model: DecodableModel,
    ids_BT: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int,
    speculative: bool,
) -> Tensor:
    """Rows with up to `max_new_tokens` more tokens, `[B, T + N]`; a row ends with EOS, shorter rows are filled with it.

    Args:
        model: to sample from.
        ids_BT: rows without padding.
        max_new_tokens: maximum per row.
        temperature, top_k, top_p, min_p, repetition_penalty: as in `Sampling`.
        seed: of the first row; each further row adds 1.
        speculative: let the model's drafter propose tokens.

    Raises:
        ValueError: a number is outside its range, or the model has no drafter.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    eos = model.config.eos_token_id
    requests = [
        Request(row, max_new_tokens, sampling, frozenset({eos}), seed=seed + i) for i, row in enumerate(ids_BT.tolist())
    ]
    new_ids: list[list[int]] = [[] for _ in requests]
    for token in DecodeEngine(model, requests, speculative).tokens():
        new_ids[token.request].append(token.id)
    longest = max(map(len, new_ids))
    new = torch.tensor([[*row, *[eos] * (longest - len(row))] for row in new_ids], device=ids_BT.device)
    return torch.cat([ids_BT, new.to(ids_BT.dtype)], dim=1)
