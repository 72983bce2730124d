"""The sample ledger: of each batch, who trained it, when, and with which push it counted.

Kept as runs: neighbours that one worker trained one after another are one entry. The shards
apply a batch once (P6); this book says by whom, and `verdict` whether any is missing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from hubring_common import plain
from hubring_common.messages import LedgerEntry, Pushed
from hubring_coordinator.machine.epoch import Epoch, missing

NAMED = 10
"""Spans that the verdict names, at most."""


class Place(NamedTuple):
    """Where an entry is kept: its epoch and first batch."""

    epoch: int
    first: int

    @classmethod
    def parse(cls, key: str) -> "Place":
        epoch, first = key.split(":")
        return cls(int(epoch), int(first))

    def __str__(self) -> str:
        return f"{self.epoch}:{self.first}"


class Book:
    """`touch` hears the place of an entry that came or grew."""

    def __init__(self, rows: Mapping[str, Any], touch: Callable[[Place], None]) -> None:
        self._pages: dict[int, dict[int, LedgerEntry]] = {}  # epoch -> first batch -> entry
        self._ends: dict[tuple[int, int], int] = {}  # (epoch, batch after it) -> its first batch
        self._touch = touch
        for key, row in rows.items():
            self._keep(Place.parse(key), plain.load(LedgerEntry, row))

    def enter(self, epoch: int, entry: LedgerEntry) -> None:
        """Batches that are done now, and were not before."""
        first = self._ends.get((epoch, entry.first))
        before = self._pages[epoch][first] if first is not None else None
        if before is not None and _continues(before, entry):
            del self._ends[epoch, entry.first]
            entry = replace(before, count=before.count + entry.count, done=entry.done)
        self._keep(Place(epoch, entry.first), entry)
        self._touch(Place(epoch, entry.first))

    def entries(self, epoch: int) -> tuple[LedgerEntry, ...]:
        """By batch."""
        page = self._pages.get(epoch, {})
        return tuple(page[first] for first in sorted(page))

    def places(self) -> list[Place]:
        return [Place(epoch, first) for epoch, page in self._pages.items() for first in page]

    def row(self, key: str) -> Any:
        place = Place.parse(key)
        entry = self._pages[place.epoch][place.first]
        return {name: getattr(entry, name) for name in LedgerEntry.__slots__}

    def check(self, epochs: Mapping[int, Epoch]) -> None:
        """Each done batch is in one entry, and nothing else is."""
        for number, epoch in epochs.items():
            entries = self.entries(number)
            assert sum(e.count for e in entries) == len(epoch.done), "the ledger's sum is off"
            edges = [(e.first, e.first + e.count) for e in entries]
            assert all(a[1] <= b[0] for a, b in pairwise(edges)), "overlap"

    def _keep(self, place: Place, entry: LedgerEntry) -> None:
        self._pages.setdefault(place.epoch, {})[place.first] = entry
        self._ends[place.epoch, entry.first + entry.count] = place.first


def _continues(before: LedgerEntry, entry: LedgerEntry) -> bool:
    same = (before.session, before.together, before.confessed)
    if same != (entry.session, entry.together, entry.confessed) or entry.together:
        return False
    return entry.confessed or entry.seq == before.seq + before.count


def seq_of(pushed: Pushed, batch: int) -> int:
    """The push that a batch of the span counted with."""
    return pushed.seq if pushed.together else pushed.seq + batch - pushed.span.first


def verdict(epochs: Iterable[Epoch], kept: Iterable[int], unit: str = "batches") -> str:
    """Whether each batch of the begun epochs counted once. `kept`: the leased batches that each
    shard holds as done, as its server last said; empty where that is not known. `unit`: what is
    leased; for streamed data its shards.
    """
    epochs = list(epochs)
    done, wanted = sum(len(e.done) for e in epochs), sum(e.batches for e in epochs)
    words = [f"{done} of {wanted} {unit} of {len(epochs)} epochs counted, each once"]
    spans = [span for epoch in epochs for span in missing(epoch)]
    if spans:
        named = [_named(span.epoch, span.first, span.count) for span in spans[:NAMED]]
        more = f", and {len(spans) - NAMED} more" if len(spans) > NAMED else ""
        words.append(f"not trained: {', '.join(named)}{more}")
    for batch in [batch for epoch in epochs for batch in epoch.set_aside()][:NAMED]:
        by = ", ".join(batch.workers)
        words.append(f"batch {batch.batch} of epoch {batch.epoch} was set aside: {by} died with it")
    words += [f"shard {n} holds {held}" for n, held in enumerate(kept) if held != done]
    return "; ".join(words)


def _named(epoch: int, first: int, count: int) -> str:
    which = f"batch {first}" if count == 1 else f"batches {first}-{first + count - 1}"
    return f"{which} of epoch {epoch}"
