"""Log lines: readable on a terminal, one JSON object a line otherwise."""

import json
import logging
import sys
import time
from typing import TextIO

PACKAGES = (
    "hubring",
    "hubring_common",
    "hubring_coordinator",
    "hubring_server",
    "hubring_worker",
)


def configure(
    member: str, level: str = "info", style: str = "auto", stream: TextIO | None = None
) -> None:
    """Send hubring's log to `stream` (standard error) under the name `member`.

    `style`: readable, json, or auto, which is readable on a terminal alone.
    """
    stream = stream or sys.stderr
    is_readable = style == "readable" or (style == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Readable(member) if is_readable else JsonLines(member))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False


class Readable(logging.Formatter):
    def __init__(self, member: str) -> None:
        super().__init__(f"%(asctime)s {member} %(levelname)s %(message)s", "%H:%M:%S")


class JsonLines(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def __init__(self, member: str) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S")
        self._member = member

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "member": self._member,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
