"""What a worker tells of itself: counts since its start, rates over the last seconds."""

import math
import time
from collections import deque

from hubring_common.messages import WorkerProgress
from hubring_worker.link import Outcome

RECENT = 5.0
"""Seconds that the rate, the loss and the share of waiting look back."""


class Progress:
    """Written by the training thread, read by the heartbeat's."""

    def __init__(self) -> None:
        self._steps = self._samples = self._epoch = self._pushes = 0
        self._staleness_sum = self._staleness_max = 0
        self._staleness: list[int] = []
        self._recent: deque[tuple[float, int, float]] = deque()  # (when, samples, seconds waited)
        self._losses: deque[tuple[float, float]] = deque()
        self._started = time.monotonic()

    def stepped(self, epoch: int, samples: int, waited: float, outcomes: list[Outcome]) -> None:
        self._steps += 1
        self._samples += samples
        self._epoch = epoch
        self._pushes += len(outcomes)
        self._staleness_sum += sum(o.staleness for o in outcomes)
        self._staleness_max = max([self._staleness_max, *(o.staleness for o in outcomes)])
        for outcome in outcomes:
            self._count(outcome.staleness)
        self._recent.append((time.monotonic(), samples, waited))
        while self._recent[0][0] < time.monotonic() - RECENT:
            self._recent.popleft()

    def logged(self, loss: float) -> None:
        now = time.monotonic()
        self._losses.append((now, loss))
        while self._losses[0][0] < now - RECENT:
            self._losses.popleft()

    def _count(self, staleness: int) -> None:
        """In buckets: 0, 1, 2-3, 4-7, ..."""
        bucket = staleness.bit_length()
        self._staleness += [0] * (bucket + 1 - len(self._staleness))
        self._staleness[bucket] += 1

    def report(self, waiting_for: str, batch_seconds: float) -> WorkerProgress:
        recent, losses = list(self._recent), [loss for _, loss in list(self._losses)]
        window = min(RECENT, time.monotonic() - self._started) or RECENT
        return WorkerProgress(
            steps=self._steps,
            samples=self._samples,
            epoch=self._epoch,
            loss=sum(losses) / len(losses) if losses else math.nan,
            rate=sum(samples for _, samples, _ in recent) / window,
            wait_share=min(1.0, sum(waited for *_, waited in recent) / window),
            staleness_sum=self._staleness_sum,
            staleness_max=self._staleness_max,
            pushes=self._pushes,
            waiting_for=waiting_for,
            batch_seconds=batch_seconds,
            staleness=tuple(self._staleness),
        )
