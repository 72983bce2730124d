"""Time as an argument: shells own a clock, machines are told `now`."""

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds that only go forward, from an arbitrary start."""
        ...


class MonotonicClock:
    def now(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that tests move by hand."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds
