"""SeekTune trains and fine-tunes DeepSeek-V4; start reading at `seektune/workflows/train.py`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seektune.data.chat_format.encode import encode_messages
    from seektune.data.chat_format.parse import parse_message
    from seektune.model.causal_lm import DeepseekV4ForCausalLM
    from seektune.model.config import DeepseekV4Config
    from seektune.recipe.load import load_recipe

__version__ = "0.1.0"

__all__ = [
    "DeepseekV4Config",
    "DeepseekV4ForCausalLM",
    "__version__",
    "encode_messages",
    "load_recipe",
    "parse_message",
]

_MODULES = {
    "DeepseekV4Config": "seektune.model.config",
    "DeepseekV4ForCausalLM": "seektune.model.causal_lm",
    "encode_messages": "seektune.data.chat_format.encode",
    "load_recipe": "seektune.recipe.load",
    "parse_message": "seektune.data.chat_format.parse",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import seektune` does not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'seektune' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
