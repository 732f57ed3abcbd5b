"""A request's body as the fields of its route: JSON, then a schema, up to the first mistake."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from seektune.data.chat_format.message import shown
from seektune.io.strict_json import parse_json
from seektune.serve.errors import ApiError
from seektune.serve.generation_request import ApiRequest

Body = TypeVar("Body", bound=ApiRequest)
MOST_MARKS = 2**18
"""Characters of a body that are in `MARKS`, those in texts included."""
MARKS = (b"{", b"[", b":")
"""Each may stand for a value that takes many times its size in memory, and time while no other thread runs."""


def check_headers(headers: Mapping[str, str]) -> None:
    """Check that a body is JSON by its Content-Type, which a web page elsewhere could not send without asking.

    Raises:
        ApiError: it is not, or is compressed.
    """
    packed = headers.get("content-encoding", "identity").strip().lower()
    if packed != "identity":
        raise ApiError(415, f"send the body without Content-Encoding, not {shown(packed)}")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(415, f"send the header Content-Type: application/json, not {kind or 'none'}")


def read_body(content: bytes, schema: type[Body]) -> Body:
    """Parse and validate a body.

    Raises:
        ApiError: it is not JSON, has too many values, or a field is missing, unknown or wrong (the first such field).
    """
    if sum(map(content.count, MARKS)) > MOST_MARKS:
        raise ApiError(413, f"the request has more than {MOST_MARKS} brackets and colons; so many values are not read")
    try:
        values = parse_json(content)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    with refusals():
        return schema.model_validate(values)


@contextmanager
def refusals(fields: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turns the error of a validation into an `ApiError` of its first mistake; `fields` have other names in errors."""
    names = fields or {}
    try:
        yield
    except ValidationError as error:
        raise _api_error(error.errors(include_url=False, include_input=False)[0]).renamed(names) from None
    except ApiError as error:
        raise error.renamed(names) from None


def _api_error(mistake: ErrorDetails) -> ApiError:
    context = mistake.get("ctx", {})
    steps = [step for step in map(str, mistake["loc"]) if not step.startswith("<")]  # tags of unions
    if "field" in context:
        steps.append(context["field"])
    path = ".".join(steps)
    message = _message(mistake["type"], mistake["msg"], context)
    return ApiError(400, f"{path}: {message}" if path else message, path or None)


def _message(kind: str, message: str, context: dict[str, object]) -> str:
    """Pydantic's message, but not where it speaks of its own workings."""
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_long":
        return f"at most {context['max_length']} items are allowed"
    if kind == "too_short":
        return f"at least {context['min_length']} item is needed"
    return message
