"""What happened in the run, in order, for people: the page, the summary, whoever asks why.

Bounded: the last ones are kept, and the first error whenever it was.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hubring_common import plain
from hubring_common.messages import RunEvent

KEPT = 200
"""Events that the status shows; a restart storm must not grow it."""
ERRORS = {"died", "failed"}
"""Kinds of which the first one stays."""


class Chronicle:
    """`touch` hears the number of an event that came or went."""

    def __init__(self, rows: Mapping[str, Any], touch: Callable[[int], None]) -> None:
        found = {int(key): plain.load(RunEvent, row) for key, row in rows.items()}
        self.events = dict(sorted(found.items()))
        self._touch = touch

    def add(self, seconds: float, kind: str, who: str, text: str) -> None:
        number = max(self.events, default=0) + 1
        self.events[number] = RunEvent(seconds, kind, who, text)
        self._touch(number)
        if len(self.events) > KEPT:
            self._drop()

    def row(self, number: int) -> Any:
        event = self.events.get(number)
        return event and {name: getattr(event, name) for name in RunEvent.__slots__}

    def first_error(self) -> int:
        """The number of the first event that is an error; 0: none is."""
        return next((n for n, event in self.events.items() if event.kind in ERRORS), 0)

    def _drop(self) -> None:
        pinned = self.first_error()
        oldest = next(number for number in self.events if number != pinned)
        del self.events[oldest]
        self._touch(oldest)
