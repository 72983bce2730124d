"""How long this worker's work on one batch takes."""

from collections import deque

WINDOW = 64
"""Batches that the mean looks back."""


class Pace:
    """`began` when a batch is handed out, `ended` when the next is asked for, `paused` where the
    time until then was not work on a batch. Seconds of one clock.
    """

    def __init__(self) -> None:
        self._lasted: deque[float] = deque(maxlen=WINDOW)
        self._began: float | None = None

    def began(self, now: float) -> None:
        self._began = now

    def ended(self, now: float) -> None:
        if self._began is not None:
            self._lasted.append(now - self._began)
        self._began = None

    def paused(self) -> None:
        self._began = None

    @property
    def seconds(self) -> float:
        """Of work on a batch, on average; 0: not known yet.

        A mean and not a median: a DataLoader that reads ahead asks for several batches at once
        and then waits as long as they take.
        """
        return sum(self._lasted) / len(self._lasted) if self._lasted else 0.0
