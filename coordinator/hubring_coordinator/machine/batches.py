"""Sets of batch numbers, kept as runs: an epoch of a million batches is a few pairs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

Run: TypeAlias = tuple[int, int]
"""[start, stop)"""


@dataclass(frozen=True, slots=True)
class Batches:
    """Immutable. `runs` ascend, are not empty and do not touch each other. Make it with `of`."""

    runs: tuple[Run, ...] = ()

    @classmethod
    def of(cls, *runs: Iterable[int]) -> "Batches":
        """From (start, stop) pairs in any order, overlapping or not."""
        joined: list[Run] = []
        for start, stop in sorted((int(a), int(b)) for a, b in runs):
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(joined[-1][1], stop)
            elif start < stop:
                joined.append((start, stop))
        return cls(tuple(joined))

    def __or__(self, other: "Batches") -> "Batches":
        return Batches.of(*self.runs, *other.runs)

    def __sub__(self, other: "Batches") -> "Batches":
        return Batches(tuple(self._without(other.runs)))

    def __and__(self, other: "Batches") -> "Batches":
        return self - (self - other)

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.runs)

    def __bool__(self) -> bool:
        return bool(self.runs)

    def lowest(self, count: int) -> "Batches":
        """The lowest `count` batches."""
        found: list[Run] = []
        for start, stop in self.runs:
            found.append((start, min(stop, start + count)))
            count -= found[-1][1] - start
            if count == 0:
                break
        return Batches(tuple(found))

    def first(self, count: int) -> "Batches":
        """The lowest batches that follow one another, `count` at most."""
        start, stop = self.runs[0]
        return Batches(((start, min(stop, start + count)),))

    def _without(self, holes: tuple[Run, ...]) -> Iterator[Run]:
        at = 0
        for start, stop in self.runs:
            while at < len(holes) and holes[at][1] <= start:
                at += 1
            yield from _cut(start, stop, holes[at:])


def _cut(start: int, stop: int, holes: tuple[Run, ...]) -> Iterator[Run]:
    """[start, stop) without `holes`, which ascend and all end after `start`."""
    for hole_start, hole_stop in holes:
        if hole_start >= stop:
            break
        if start < hole_start:
            yield start, hole_start
        start = hole_stop
    if start < stop:
        yield start, stop
