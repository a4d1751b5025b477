"""Structured logs of the service: one JSON object per line on standard error, without user ids."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """time, level, logger, message, then whatever was given as `extra`; of an exception its type and where it arose.

    An exception's own text is left out: it may quote a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[0]:
            line["exception"], where = record.exc_info[0].__name__, record.exc_info[2]
            frames = []
            while where is not None:
                frames.append(f"{where.tb_frame.f_code.co_filename.rsplit('/', 2)[-1]}:{where.tb_lineno}")
                where = where.tb_next
            line["where"] = frames[-6:]
        return json.dumps(line, default=str)


def configure() -> None:
    """Send the loggers below `tactful` to standard error as JSON lines, and nowhere else."""
    logger = logging.getLogger("tactful")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
