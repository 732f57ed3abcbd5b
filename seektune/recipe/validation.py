"""Makes a typed section of a YAML document, strict about types, with errors that name file, line and key."""

import json
from typing import TypeVar

from pydantic import ValidationError

from seektune.recipe.document import RECIPE, FileKind, YamlNode
from seektune.recipe.errors import find_section, first_error
from seektune.section import Section

Model = TypeVar("Model", bound=Section)


def validate(document: YamlNode, model: type[Model], kind: FileKind = RECIPE) -> Model:
    """The section that a document describes.

    Raises:
        ValueError: a key is unknown or missing, or a value is not valid.
    """
    # through JSON: its strict mode accepts a list for a tuple, but neither "5" nor true for a number
    try:
        return model.model_validate_json(json.dumps(document.plain(), ensure_ascii=False).encode(), strict=True)
    except UnicodeEncodeError:
        raise ValueError(f"{document.where}: a value holds a character that is not Unicode text") from None
    except ValidationError as error:
        bare = _numbers_as_text(error, document, model)
        if bare == document:
            raise ValueError(first_error(error, document, model, kind)) from None
    return validate(bare, model, kind)


def _numbers_as_text(error: ValidationError, document: YamlNode, model: type[Section]) -> YamlNode:
    """The document with numbers as their source text where strings are expected: a folder may be named 2026."""
    for each in error.errors(include_url=False):
        path = tuple(str(part) for part in find_section(each["loc"], model)[0])
        entry = document.find(path)
        if each["type"] in ("string_type", "path_type") and entry is not None and type(entry.value) in (int, float):
            document = document.put(path, YamlNode(entry.text, entry.where, entry.text, entry.override))
    return document
