"""Logs of the service: lines of JSON, each with the id of the request that it is about, or text."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

ACCESS = logging.getLogger("vprompt.access")
"""Told of every request."""

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that is answered."""


class JsonLines(logging.Formatter):
    """Records as JSON objects, one a line; with the `fields` of those that have such.

    Example:
        >>> record = logging.LogRecord("vprompt.serving", logging.ERROR, "", 0, "It failed.", None, None)
        >>> json.loads(JsonLines().format(record))["message"]
        'It failed.'
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


@contextmanager
def logging_to_stderr(level: str, *, json_lines: bool) -> Generator[None]:
    """Sends the library's log to standard error inside the block.

    Args:
        level: "debug", "info", "warning" or "error".
        json_lines: Log every request, and all as lines of JSON.
    """
    handler, logger = logging.StreamHandler(), logging.getLogger("vprompt")
    handler.setFormatter(JsonLines() if json_lines else logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    ACCESS.setLevel(logging.INFO if json_lines else logging.CRITICAL)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        ACCESS.setLevel(logging.NOTSET)
