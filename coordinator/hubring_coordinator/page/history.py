"""The run over time, in a bounded number of points: where there are too many, neighbours merge.

Pure. A point begins as one sample; each time the limit is reached, a point covers twice as many
samples as before. So a week of training costs as much as ten minutes of it.
"""

import bisect
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hubring_common.messages import MemberStatus, Role, Status
from hubring_common.report import mean, totals, workers

LIMIT = 600
"""Points that are kept, at most; even."""
LATELY = 12
"""Samples that `recent` spans: what happens now is judged by these."""


@dataclass(frozen=True, slots=True)
class Point:
    """`seconds` into the run and `steps` of the cluster at the end of what it covers; `loss` and
    `rate` (samples a second) on average over it, NaN where there is none; live `workers` and
    `servers`.
    """

    seconds: float
    steps: int
    loss: float
    rate: float
    workers: int
    servers: int
    covers: int = 1

    def row(self) -> list[Any]:
        """For JSON, in the order of COLUMNS; a loss that is no number is None."""
        loss = round(self.loss, 6) if math.isfinite(self.loss) else None
        rate = round(self.rate, 2) if math.isfinite(self.rate) else None
        counts = (self.workers, self.servers, self.covers)
        return [round(self.seconds, 2), self.steps, loss, rate, *counts]


COLUMNS = tuple(field.name for field in fields(Point))


@dataclass(frozen=True, slots=True)
class Sample:
    """A status at one moment. `applied` and `applying`: records and seconds of each shard."""

    point: Point
    applied: tuple[int, ...] = ()
    applying: tuple[float, ...] = ()


def is_live(member: MemberStatus) -> bool:
    return member.state.name in {"JOINING", "ACTIVE"}


def loss_of(status: Status) -> float:
    """Mean over the workers that have one: the live ones, or all where none is."""
    known = [m for m in workers(status) if m.worker and math.isfinite(m.worker.loss)]
    chosen = [m for m in known if is_live(m)] or known
    return mean(m.worker.loss for m in chosen if m.worker) if chosen else math.nan


def sample(status: Status) -> Sample:
    live = [m for m in status.members if is_live(m)]
    is_going = bool(live) and not status.state.is_over
    rate = sum(m.worker.rate for m in live if m.worker is not None) if is_going else math.nan
    of_role = [sum(1 for m in live if m.role is role) for role in (Role.WORKER, Role.SERVER)]
    steps = totals(status)["steps"]
    point = Point(status.seconds, steps, loss_of(status), rate, of_role[0], of_role[1])
    shards = [shard.progress for shard in status.shards]
    return Sample(point, tuple(p.applied for p in shards), tuple(p.apply_seconds for p in shards))


def merged(points: Sequence[Point]) -> Point:
    """One point for neighbours: averages by what each covers, the last one's counts."""
    last, covers = points[-1], sum(p.covers for p in points)
    loss = _average([(p.loss, p.covers) for p in points])
    rate = _average([(p.rate, p.covers) for p in points])
    return replace(last, loss=loss, rate=rate, covers=covers)


def _average(weighted: Sequence[tuple[float, int]]) -> float:
    """NaN where none is a number."""
    known = [(value, weight) for value, weight in weighted if math.isfinite(value)]
    weights = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / weights if known else math.nan


class History:
    """`stride`: samples that a whole point covers. `recent`: the last samples as they came."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self.stride = 1
        self.points: list[Point] = []
        self.recent: deque[Sample] = deque(maxlen=LATELY)
        self._open: list[Point] = []
        self._last: Point | None = None

    def restore(self, points: Iterable[Point]) -> None:
        """Go on with points that an earlier coordinator had; finer ones are merged."""
        found = list(points)
        self.stride = max((p.covers for p in found), default=1)
        for point in found:
            self._take(point)

    def add(self, taken: Sample) -> bool:
        """Whether it was taken: a sample that is not later than the last is left out, as after a
        restart, when the run's clock goes on from its last durable reading.
        """
        point = taken.point
        if self._last is not None:
            if point.seconds <= self._last.seconds:
                return False
            point = replace(point, steps=max(point.steps, self._last.steps))
        self.recent.append(taken)
        self._take(point)
        return True

    def all(self) -> list[Point]:
        """Every point; the last one may be unfinished."""
        return [*self.points, merged(self._open)] if self._open else list(self.points)

    @property
    def last(self) -> Point | None:
        return self._last

    def as_json(self, since: int = 0) -> dict[str, Any]:
        """The points from number `since` on, which take the place of whatever was there."""
        rows = [point.row() for point in self.all()[since:]]
        return {"columns": COLUMNS, "stride": self.stride, "from": since, "rows": rows}

    def steps_at(self, seconds: float) -> int:
        """The cluster's steps at that time into the run, between the points by interpolation."""
        points = self.all()
        at = bisect.bisect_left(points, seconds, key=lambda p: p.seconds)
        if at == len(points):
            return points[-1].steps if points else 0
        after = points[at]
        before = points[at - 1] if at else Point(0.0, 0, 0.0, 0.0, 0, 0)
        share = (seconds - before.seconds) / max(after.seconds - before.seconds, 1e-9)
        return round(before.steps + share * (after.steps - before.steps))

    def _take(self, point: Point) -> None:
        self._last = point
        self._open.append(point)
        if sum(p.covers for p in self._open) < self.stride:
            return
        self.points.append(merged(self._open))
        self._open.clear()
        if len(self.points) >= self._limit:
            self._halve()

    def _halve(self) -> None:
        pairs = zip(self.points[::2], self.points[1::2], strict=True)
        self.points = [merged(pair) for pair in pairs]
        self.stride *= 2


def from_row(row: Sequence[Any]) -> Point:
    """The point of a row. Raises TypeError or ValueError where it is none."""
    seconds, steps, loss, rate, counted, served, covers = row
    if not math.isfinite(float(seconds)):
        raise ValueError(f"{seconds} is no time")
    point = Point(
        float(seconds), int(steps), _number(loss), _number(rate), int(counted), int(served)
    )
    return replace(point, covers=max(1, int(covers)))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def busiest(history: History) -> tuple[int, float, float] | None:
    """(shard, share of the time that it applied, seconds each) of late; None: not known yet."""
    if len(history.recent) < 2:
        return None
    first, last = history.recent[0], history.recent[-1]
    if not last.applying or len(first.applying) != len(last.applying):
        return None
    spans = [b - a for a, b in zip(first.applying, last.applying, strict=True)]
    shard = max(range(len(spans)), key=spans.__getitem__)
    records = last.applied[shard] - first.applied[shard]
    seconds = last.point.seconds - first.point.seconds
    if min(spans) < 0 or records <= 0 or seconds <= 0:
        return None
    return shard, min(1.0, spans[shard] / seconds), spans[shard] / records
