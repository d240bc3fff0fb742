"""Errors of a request: a code for programs, a sentence for people, and the HTTP status."""

from __future__ import annotations

import logging

from vprompt.utils.errors import UnknownAdapterError, VPromptError

STATUS = {
    "broken_image": 400,
    "bad_token": 401,
    "wrong_host": 403,
    "unknown_adapter": 404,
    "not_found": 404,
    "wrong_method": 405,
    "too_slow": 408,
    "client_gone": 499,
    "refused": 409,
    "too_many_bytes": 413,
    "not_an_image": 415,
    "too_many_pixels": 422,
    "too_much_work": 422,
    "invalid": 422,
    "too_many": 429,
    "failed": 500,
    "busy": 503,
    "stopping": 503,
    "timeout": 503,
}
"""HTTP status by code; 499 is only ever counted, for the client is not there to read it."""


class RequestError(VPromptError):
    """Reason why a request, or one adapter's share of it, has no answer.

    Args:
        code: One of `STATUS`.
        message: A sentence.
        retry_after: Seconds after which to ask again, where that helps; not given, a moment for some codes.

    Example:
        >>> RequestError("busy", "Ask again.").status
        503
    """

    def __init__(self, code: str, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after
        self.code = code
        self.status = STATUS[code]

    def __str__(self) -> str:
        return self.args[1]


def problem_of(error: BaseException) -> RequestError:
    """The error that a client is told of; one that is nobody's request's fault is logged."""
    match error:
        case RequestError():
            return error
        case UnknownAdapterError():
            return RequestError("unknown_adapter", str(error))
        case _:
            logging.getLogger("vprompt.serving").error("A request failed.", exc_info=error)
            return RequestError("failed", "The request failed; the service's log says why.")
