"""Errors in the form of OpenAI's API, and of Anthropic's for its routes."""

import json
import re
from collections.abc import Mapping

from fastapi import Response

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""OpenAI's `type` for each HTTP status; others are `server_error`."""

MESSAGES_ROUTE = "/v1/messages"
"""Paths that begin so have Anthropic's errors."""
MESSAGES_ERROR_TYPES = {
    **ERROR_TYPES,
    413: "request_too_large",
    503: "overloaded_error",
}
"""Anthropic's `type` for each HTTP status; others are `api_error`."""

FIELD = re.compile(r"^\w+")
NAMED = re.compile(r"^\w+(?=[.:])|\b\w+(?= \()")
"""A field that a message begins with, or names with its value."""

HEADERS = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}
"""Default headers of a status."""


class ApiError(Exception):
    """An error response."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = HEADERS.get(status, {}) if headers is None else headers

    def renamed(self, fields: Mapping[str, str]) -> "ApiError":
        """The same error with other names of fields: in `param`, at the beginning of the message, in `NAME (VALUE)`."""
        param = self.param and FIELD.sub(lambda found: fields.get(found[0], found[0]), self.param, 1)
        message = NAMED.sub(lambda found: fields.get(found[0], found[0]), str(self))
        return ApiError(self.status, message, param, self.code, self.headers)

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        return ERROR_TYPES.get(self.status, "server_error")

    def body(self) -> dict[str, object]:
        """The JSON body in OpenAI's form."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def messages_body(self) -> dict[str, object]:
        """The JSON body in Anthropic's form."""
        kind = MESSAGES_ERROR_TYPES.get(self.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": str(self)}}

    def response(self, path: str) -> Response:
        """The HTTP response to a request for a path."""
        body = self.messages_body() if path.startswith(MESSAGES_ROUTE) else self.body()
        # ASCII: a message may quote lone surrogates, which UTF-8 cannot encode
        return Response(json.dumps(body), self.status, self.headers, "application/json")
