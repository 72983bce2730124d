"""Standard output as the commands use it: for people, or one JSON object."""

import json
import sys
from typing import Any

from rich.console import Console

PLAIN_WIDTH = 200


def console(*, stderr: bool = False) -> Console:
    """A terminal as wide as it is; anything else wide enough that no line is broken."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=PLAIN_WIDTH)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
