"""The keys of config.json that describe DSpark, the drafter of the releases after the preview."""

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

LARGEST_BLOCK = 16
"""Largest draft: as many tokens as a cache can roll back. The released drafters propose five."""

CHUNK = 32
"""Anchors whose drafts exist at a time in training."""


class DSparkKeys(BaseModel):
    """The keys `dspark_*`; a config has all of them or none."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())

    dspark_block_size: PositiveInt | None = None
    """Tokens that one draft proposes."""
    dspark_noise_token_id: NonNegativeInt | None = None
    """The id whose embedding stands for the tokens of a draft that are not known yet."""
    dspark_target_layer_ids: tuple[NonNegativeInt, ...] | None = None
    """Layers of the backbone whose outputs the drafter reads, in this order."""
    dspark_markov_rank: PositiveInt | None = None
    """Rank of the Markov head."""

    @property
    def has_dspark(self) -> bool:
        """Whether the config describes a DSpark drafter."""
        return any(value is not None for value in self._dspark().values())

    def dspark_problems(self, layers: int, vocab_size: int) -> list[tuple[bool, str]]:
        """Pairs of whether something is wrong with the keys, and the message about it."""
        keys = self._dspark()
        missing = next((key for key, value in keys.items() if value is None), "")
        targets = self.dspark_target_layer_ids or ()
        return [
            (missing != "", f"{missing} is missing; DSpark needs {', '.join(keys)}"),
            (not targets, "dspark_target_layer_ids is empty"),
            (
                (self.dspark_block_size or 0) > LARGEST_BLOCK,
                f"dspark_block_size is above {LARGEST_BLOCK}, which no drafter proposes at once",
            ),
            (
                max(targets, default=0) >= layers,
                f"dspark_target_layer_ids must be below num_hidden_layers ({layers})",
            ),
            (
                (self.dspark_noise_token_id or 0) >= vocab_size,
                f"dspark_noise_token_id must be below vocab_size ({vocab_size})",
            ),
        ]

    def _dspark(self) -> dict[str, object]:
        return self.model_dump(include=set(DSparkKeys.model_fields))
