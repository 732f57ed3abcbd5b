"""The architecture of a model and the formats of its weights, without the network."""

from pathlib import Path

from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.source import FolderSource
from seektune.model.config import DeepseekV4Config
from seektune.model.quantized import KindOf
from seektune.model.variants import BASE, VARIANTS


def known_architecture(model: str) -> tuple[DeepseekV4Config, KindOf]:
    """Config, and the kind of each tensor on disk: of a local folder, a release's Hub id, or a preset as released.

    Raises:
        ValueError: it is none of them.
    """
    folder = Path(model)
    if folder.is_dir():
        return DeepseekV4Config.from_pretrained(folder), FolderSource(folder).kind
    for variant in VARIANTS:
        if model in (variant.name, *variant.repositories):
            return DeepseekV4Config.preset(variant.name), FORMATS[BASE if BASE in variant.name else "released"].kind
    names = ", ".join(variant.name for variant in VARIANTS)
    raise ValueError(
        f"plans and dry runs do not use the network, and {model} is not a folder; name one, or one of {names}"
    )
