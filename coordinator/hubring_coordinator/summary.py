"""The run's status as JSON, and the file that a run leaves behind."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from hubring_common import plain
from hubring_common.messages import Status

log = logging.getLogger(__name__)

FILE = "summary.json"


def as_json(status: Status) -> dict[str, Any]:
    """The fields of messages.Status; enums as names, NaN and infinities as null."""
    shown: dict[str, Any] = plain.finite(plain.dump(status))
    return shown


def write(status: Status, run_dir: str) -> None:
    """Whole or not at all. A folder that cannot be written costs the summary, not the run."""
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{FILE}.{os.getpid()}"
        draft.write_text(json.dumps(as_json(status), indent=2, allow_nan=False) + "\n")
        draft.replace(folder / FILE)
    except OSError as error:
        log.warning("cannot write %s: %s", folder / FILE, error)
