"""Weights in formats that are not read: recognized by their file names, and said what they are."""

from pathlib import Path

OTHER_FORMATS = (
    ("*.gguf", "GGUF, the format of llama.cpp", "use the safetensors checkpoint that it was made from"),
    (
        "pytorch_model*.bin",
        "a pickle, which can run code",
        "save it as safetensors with transformers",
    ),
)
"""Patterns of file names, what such a file is, and what to do."""


def other_format(place: Path) -> str | None:
    """The sentence about a file in another format, or about a folder of such files; None if it is neither."""
    if place.is_dir() and any(place.glob("*.safetensors")):
        return None
    for pattern, what, cure in OTHER_FORMATS:
        found = sorted(place.glob(pattern)) if place.is_dir() else [place] if place.match(pattern) else []
        if found and found[0].is_file():
            return f"{found[0]} is {what}, and is not read; {cure}"
    return None
