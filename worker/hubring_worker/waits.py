"""Waiting with a name: what for, since when, and a line to the log when it takes long."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hubring_common.errors import TimedOut

log = logging.getLogger(__name__)

T = TypeVar("T")
TELL_AFTER = 2.0
"""Seconds before a wait is worth a line; the next lines come at twice the time each."""


class Waits:
    """What this worker waits for now; `condition` guards whatever the waits look at."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self._names: list[tuple[str, float]] = []

    @property
    def current(self) -> str:
        """Such as "4 s for server-1"; empty where nothing takes long."""
        for name, since in self._names[-1:]:
            if (seconds := time.monotonic() - since) >= 1:
                return f"{seconds:.0f} s for {name}"
        return ""

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        entry = (name, time.monotonic())
        self._names.append(entry)
        try:
            yield
        finally:
            self._names.remove(entry)

    def until(self, name: str, found: Callable[[], T | None], timeout: float) -> T:
        """What `found` returns once it is not None. Raises TimedOut, or what `found` raises."""
        started, tell = time.monotonic(), TELL_AFTER
        with self.named(name), self.condition:
            while (value := found()) is None:
                waited = time.monotonic() - started
                if waited >= timeout:
                    raise TimedOut(f"waited {waited:.0f} s for {name}")
                if waited >= tell:
                    log.warning("waiting %.0f s for %s", waited, name)
                    tell *= 2
                self.condition.wait(min(tell, timeout) - waited)
        return value
