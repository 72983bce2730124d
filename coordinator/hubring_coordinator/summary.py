"""The run's status as JSON, and the files that a run leaves behind."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from hubring_common import plain
from hubring_common.messages import Status

log = logging.getLogger(__name__)

FILE, REPORT = "summary.json", "report.html"


def as_json(status: Status) -> dict[str, Any]:
    """The fields of messages.Status; enums as names, NaN and infinities as null."""
    shown: dict[str, Any] = plain.finite(plain.dump(status))
    return shown


def write(status: Status, run_dir: str) -> None:
    """The summary, whole or not at all."""
    place(run_dir, FILE, json.dumps(as_json(status), indent=2, allow_nan=False) + "\n")


def place(run_dir: str, name: str, text: str) -> None:
    """Whole or not at all. A folder that cannot be written costs the file, not the run."""
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{name}.{os.getpid()}"
        draft.write_text(text, encoding="utf-8", errors="replace")
        draft.replace(folder / name)
    except OSError as error:
        log.warning("cannot write %s: %s", folder / name, error)
