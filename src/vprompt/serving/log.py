"""Logs of the service: requests, and what goes wrong, as text or as lines of JSON, each with the request's id."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime

ACCESS = logging.getLogger("vprompt.access")
"""Gets an `Access` for every request."""

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that is answered."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """A request and its answer.

    Args:
        client: Its address.
        method: Of HTTP.
        path: Without the query.
        status: Of the answer.
        seconds: From the head to the end of the answer.
        bytes: Size of its body.
        adapters: Adapters that were asked.
    """

    client: str
    method: str
    path: str
    status: int
    seconds: float
    bytes: int
    adapters: list[str]

    def __str__(self) -> str:
        return f"{self.client} {self.method} {self.path} {self.status} {self.seconds:.3f} s"


class JsonLines(logging.Formatter):
    """Records as JSON objects, one a line.

    Example:
        >>> record = logging.LogRecord("vprompt.serving", logging.ERROR, "", 0, "It failed.", None, None)
        >>> json.loads(JsonLines().format(record))["message"]
        'It failed.'
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        access = dataclasses.asdict(record.msg) if isinstance(record.msg, Access) else {}
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": REQUEST_ID.get() or None,
            **(access or {"message": record.getMessage()}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


class Lines(logging.Formatter):
    """Records as lines of text."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line, and its traceback."""
        start = filter(None, (self.formatTime(record), record.levelname.lower(), REQUEST_ID.get()))
        return f"{' '.join(start)} {super().format(record)}"


@contextmanager
def logging_to_stderr(level: str, access: str) -> Generator[None]:
    """Sends the library's log to standard error inside the block.

    Args:
        level: "debug", "info", "warning" or "error".
        access: "none", or "text" or "json" to log every request so; with "json" all lines are.
    """
    handler, logger = logging.StreamHandler(), logging.getLogger("vprompt")
    handler.setFormatter(JsonLines() if access == "json" else Lines())
    before = logger.level, ACCESS.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    ACCESS.setLevel(logging.CRITICAL if access == "none" else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        ACCESS.setLevel(before[1])
