"""What encoders of rows take from the model of a recipe."""

from seektune.data.datasets.dataset import EncodeSettings
from seektune.model.config import DeepseekV4Config
from seektune.model.variants import encoding_of


def encode_settings(config: DeepseekV4Config) -> EncodeSettings:
    """The settings for the datasets of a model."""
    return EncodeSettings(config.vocab_size, encoding_of(config))
