"""Errors in the form of OpenAI's API."""

import json
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

    def body(self) -> dict[str, object]:
        """The JSON body."""
        error_type = ERROR_TYPES.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": error_type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The HTTP response."""
        # ASCII: a message may quote lone surrogates, which UTF-8 cannot encode
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")
