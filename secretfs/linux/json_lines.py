"""A log as JSON: one object a line, for programs that collect logs."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from secretfs.linux.log import context_of


class JSONLine(logging.Formatter):
    """One JSON object for one message, a traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Format it. The time is UTC, with milliseconds."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **dict(context_of(record)),
        }
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["traceback"] = record.exc_text
        if lost := getattr(record, "lost", 0):
            line["lost"] = lost
        return json.dumps(line)
