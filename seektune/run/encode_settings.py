"""What encoders of rows take from the model of a recipe."""

from seektune.data.datasets.dataset import EncodeSettings
from seektune.model.config import DeepseekV4Config
from seektune.model.variants import encoding_of
from seektune.recipe.recipe import ModelConfig
from seektune.run.build import read_config


def encode_settings(config: DeepseekV4Config) -> EncodeSettings:
    """The settings for the datasets of a model."""
    return EncodeSettings(config.vocab_size, encoding_of(config))


def settings_without_weights(section: ModelConfig) -> EncodeSettings:
    """The settings for rows that are only looked at: those of the preset, so that no checkpoint need be here.

    Raises:
        ValueError: there is no preset and the weights' config cannot be read.
    """
    return encode_settings(section.architecture() or read_config(section))
