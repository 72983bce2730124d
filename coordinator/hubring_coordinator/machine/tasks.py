"""The data tasks of epochs: who trains which batch, and what is done.

Of an epoch every batch is left, leased, lost or done. *Left* are those never leased and those
given back; an epoch that its workers broke off keeps them. *Lost* are those of a dead worker:
they are trained again, by whoever asks next. *Done* means acknowledged by every shard, once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hubring_common.errors import InvalidMessage
from hubring_common.ids import Session
from hubring_common.messages import EpochStatus, Span
from hubring_coordinator.machine.batches import Batches

LONGEST_TASK = 10
"""Batches of one task. Guided self-scheduling (Polychronopoulos and Kuck, 1987) halves the
tasks towards the end of an epoch; the cap bounds what a death takes back."""


def task_length(pool: int, workers: int) -> int:
    """Half of each worker's share of `pool` batches, at least 1 and at most LONGEST_TASK."""
    return min(LONGEST_TASK, max(1, -(-pool // (2 * max(1, workers)))))


@dataclass(slots=True)
class Epoch:
    number: int
    batches: int
    left: Batches
    done: Batches = field(default_factory=Batches)
    lost: Batches = field(default_factory=Batches)
    lost_with: tuple[str, ...] = ()
    leases: dict[Session, Batches] = field(default_factory=dict)
    issued: int = 0
    """Batches from here on were never leased."""

    @property
    def is_busy(self) -> bool:
        return bool(self.leases or self.lost)

    def lease(self, session: Session, batches: Batches) -> None:
        self.left -= batches
        self._find(batches)
        self.leases[session] = self.leases.get(session, Batches()) | batches
        self.issued = max(self.issued, batches.runs[-1][1])

    def finish(self, batches: Batches) -> None:
        """Done, whoever holds them now."""
        self.done |= batches
        self.left -= batches
        self._find(batches)
        for session in tuple(self.leases):
            self.take_back(session, batches)

    def take_back(self, session: Session, batches: Batches) -> Batches:
        """Those of `batches` that `session` held."""
        held = self.leases.get(session, Batches())
        if rest := held - batches:
            self.leases[session] = rest
        else:
            self.leases.pop(session, None)
        return held & batches

    def lose(self, session: Session, worker: str) -> int:
        batches = self.leases.pop(session, Batches())
        if batches:
            self.lost |= batches
            self.lost_with = tuple(dict.fromkeys((*self.lost_with, worker)))
        return len(batches)

    def status(self) -> EpochStatus:
        leased = sum(map(len, self.leases.values()))
        left = len(self.left) + len(self.lost)
        return EpochStatus(self.number, self.batches, len(self.done), leased, left)

    def row(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "issued": self.issued,
            "done": _plain(self.done),
            "lost": _plain(self.lost),
            "lost_with": list(self.lost_with),
            "leases": {str(session): _plain(held) for session, held in self.leases.items()},
        }

    @classmethod
    def from_row(cls, number: int, row: dict[str, Any]) -> "Epoch":
        done, lost = Batches.of(*row["done"]), Batches.of(*row["lost"])
        leases = {int(session): Batches.of(*runs) for session, runs in row["leases"].items()}
        left = Batches.of((0, row["batches"])) - done - lost
        for held in leases.values():
            left -= held
        lost_with = tuple(row["lost_with"])
        return cls(number, row["batches"], left, done, lost, lost_with, leases, row["issued"])

    def check(self) -> None:
        parts = [self.left, self.done, self.lost, *self.leases.values()]
        whole = Batches.of(*(run for part in parts for run in part.runs))
        assert sum(map(len, parts)) == len(whole) == self.batches, "an epoch's parts overlap"
        assert whole == Batches.of((0, self.batches)), "an epoch's parts leave a hole"
        assert all(self.leases.values()), "an empty lease"
        assert bool(self.lost) == bool(self.lost_with), "lost batches are lost with someone"
        assert Batches.of((self.issued, self.batches)) - self.left == Batches(), "done unseen"

    def _find(self, batches: Batches) -> None:
        self.lost -= batches
        self.lost_with = self.lost_with if self.lost else ()


def _plain(batches: Batches) -> list[list[int]]:
    return [list(run) for run in batches.runs]


class Tasks:
    """All epochs so far. `touch` hears the number of an epoch that changed."""

    def __init__(self, epochs: Iterable[Epoch], touch: Callable[[int], None]) -> None:
        self.epochs = {epoch.number: epoch for epoch in epochs}
        self._touch = touch
        self._busy = {e.number: e for e in self.epochs.values() if e.is_busy}

    def take(self, session: Session, number: int, batches: int, workers: int) -> Span | None:
        """Lease a task: lost batches of epochs up to `number` first, then what is left of it."""
        epoch = self._open(number, batches)
        earlier = self.first_lost()
        if earlier is not None and earlier.number <= number:
            return self._lease(earlier, session, earlier.lost, workers)
        return self._lease(epoch, session, epoch.left, workers) if epoch.left else None

    def settle(self, session: Session, done: Iterable[Span], returned: Iterable[Span]) -> None:
        """Raises InvalidMessage, and changes nothing, where a span was never leased."""
        finished = [(self._issued(span), _batches(span)) for span in done]
        back = [(self._issued(span), _batches(span)) for span in returned]
        for epoch, batches in finished:
            epoch.finish(batches)
        for epoch, batches in back:
            epoch.left |= epoch.take_back(session, batches)
        for epoch, _ in (*finished, *back):
            self._changed(epoch)

    def release(self, session: Session) -> None:
        """The session ends in order: what it still holds is left to others."""
        for epoch in self._held_by(session):
            epoch.left |= epoch.take_back(session, epoch.leases[session])
            self._changed(epoch)

    def lose(self, session: Session, worker: str) -> int:
        """The session died. Returns how many batches were lost with it."""
        held = self._held_by(session)
        count = sum(epoch.lose(session, worker) for epoch in held)
        for epoch in held:
            self._changed(epoch)
        return count

    def holders(self, upto: int) -> dict[Session, int]:
        """Session -> batches that it holds of the epochs up to `upto`."""
        held: dict[Session, int] = {}
        for epoch in self._busy.values():
            for session, batches in epoch.leases.items() if epoch.number <= upto else ():
                held[session] = held.get(session, 0) + len(batches)
        return held

    @property
    def is_leased(self) -> bool:
        return any(epoch.leases for epoch in self._busy.values())

    def first_lost(self) -> Epoch | None:
        """The earliest epoch that lost batches with a worker."""
        return min((e for e in self._busy.values() if e.lost), key=_number, default=None)

    def status(self) -> tuple[EpochStatus, ...]:
        return tuple(self.epochs[number].status() for number in sorted(self.epochs))

    def check(self) -> None:
        for epoch in self.epochs.values():
            epoch.check()
        assert self._busy == {e.number: e for e in self.epochs.values() if e.is_busy}

    def _open(self, number: int, batches: int) -> Epoch:
        if number not in self.epochs:
            self.epochs[number] = Epoch(number, batches, Batches.of((0, batches)))
            self._touch(number)
        return self.epochs[number]

    def _lease(self, epoch: Epoch, session: Session, pool: Batches, workers: int) -> Span:
        batches = pool.first(task_length(len(pool), workers))
        epoch.lease(session, batches)
        self._changed(epoch)
        return Span(epoch.number, batches.runs[0][0], len(batches))

    def _issued(self, span: Span) -> Epoch:
        epoch = self.epochs.get(span.epoch)
        if epoch is None or span.count < 1 or span.first + span.count > epoch.issued:
            last = span.first + span.count - 1
            fact = f"batches {span.first} to {last} of epoch {span.epoch} were never leased"
            raise InvalidMessage(fact)
        return epoch

    def _held_by(self, session: Session) -> list[Epoch]:
        return [epoch for epoch in self._busy.values() if session in epoch.leases]

    def _changed(self, epoch: Epoch) -> None:
        self._touch(epoch.number)
        if epoch.is_busy:
            self._busy[epoch.number] = epoch
        else:
            self._busy.pop(epoch.number, None)


def _batches(span: Span) -> Batches:
    return Batches.of((span.first, span.first + span.count))


def _number(epoch: Epoch) -> int:
    return epoch.number
