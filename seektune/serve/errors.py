"""Errors in the form of OpenAI's API."""

import json
from collections.abc import Mapping

from fastapi import Response

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""What each status is called; others are `server_error`."""

HEADERS = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}
"""What a status comes with, where nothing else is said."""


class ApiError(Exception):
    """An answer that is an error."""

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

    def body(self) -> dict[str, object]:
        """As the API writes it."""
        kind = KINDS.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Its HTTP response."""
        # ASCII: a message may quote what no encoding can write
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")
