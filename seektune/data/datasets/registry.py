"""The datasets that a recipe can name. A new one needs a module in this folder and a line here."""

from typing import Annotated

from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.dataset import DataConfig
from seektune.data.datasets.feedback import FeedbackConfig
from seektune.data.datasets.hellaswag import HellaswagConfig
from seektune.data.datasets.preference import PreferenceConfig
from seektune.data.datasets.prompt_completion import PromptCompletionConfig
from seektune.data.datasets.text import TextConfig
from seektune.data.datasets.tokens import TokensConfig
from seektune.section import OneOf

DATASETS: dict[str, type[DataConfig]] = {
    "hellaswag": HellaswagConfig,
    "chat": ChatConfig,
    "prompt_completion": PromptCompletionConfig,
    "text": TextConfig,
    "preference": PreferenceConfig,
    "feedback": FeedbackConfig,
    "tokens": TokensConfig,
}
"""Sections by the value of `data.kind`; the first is the default."""

DataSection = Annotated[DataConfig | list[DataConfig], OneOf("kind", DATASETS, several=True)]
"""The type of a recipe's `data`: one dataset, or a list of them."""


def default_data() -> DataConfig:
    """The dataset of a recipe without `data`."""
    name, section = next(iter(DATASETS.items()))
    return section(kind=name)
