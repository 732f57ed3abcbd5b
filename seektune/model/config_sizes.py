"""How large the numbers of a config.json may be, so that no module of a model is made that could never be built."""

from collections.abc import Mapping

LARGEST = 2**20
LARGEST_OF = {
    "num_hidden_layers": 2**10,
    "hc_mult": 2**6,
    "hc_sinkhorn_iters": 2**10,
    "max_position_embeddings": 2**31,
}
"""The largest sizes, and keys with a limit of their own; Pro has 61 layers and a vocabulary of 129,280."""
MOST_EXPERT_MATRICES = 2**20
"""Of all layers; Pro has 70,272."""


def check_sizes(sizes: Mapping[str, int], blocks: int) -> None:
    """Check the whole numbers of a config by their keys, and its number of blocks.

    Raises:
        ValueError: one is larger than in any model; the message names the key.
    """
    for key, size in sizes.items():
        most = LARGEST_OF.get(key, LARGEST)
        if size > most:
            raise ValueError(f"{key} is above {most:,}: a model larger than any DeepSeek-V4; the file is damaged")
    if 3 * blocks * sizes["n_routed_experts"] > MOST_EXPERT_MATRICES:
        raise ValueError("n_routed_experts makes a model larger than any DeepSeek-V4; the file is damaged")
