"""One data epoch: which batches are left, leased, lost, done or set aside.

*Left* are those never leased and those given back; an epoch that its workers broke off keeps
them. *Lost* are those of a dead worker: they are trained again, by whoever asks next. *Done*
means acknowledged by every shard, once. *Set aside* is a batch that was with DEADLY workers when
they died.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hubring_common.ids import Session
from hubring_common.messages import EpochStatus, SetAside, Span
from hubring_coordinator.machine.batches import Batches

DEADLY = 3
"""Workers that must have died with a batch in hand before it is set aside."""
IN_HAND = 64
"""Batches that a dead worker may have had in hand: the lowest of those it held, since a worker
trains in this order. Each is on probation from then on: leased alone, to a worker that holds
nothing else, so that one more death tells which it was.
"""


@dataclass(frozen=True, slots=True)
class Grant:
    """Batches [start, stop) were leased together, `taken` seconds into the run."""

    start: int
    stop: int
    taken: float


@dataclass(slots=True)
class Epoch:
    number: int
    batches: int
    left: Batches
    done: Batches = field(default_factory=Batches)
    lost: Batches = field(default_factory=Batches)
    aside: Batches = field(default_factory=Batches)
    lost_with: tuple[str, ...] = ()
    leases: dict[Session, Batches] = field(default_factory=dict)
    grants: dict[Session, tuple[Grant, ...]] = field(default_factory=dict)
    blamed: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Batch -> the workers that died with it in hand. Such a batch is on probation."""
    issued: int = 0
    """Batches from here on were never leased."""

    @classmethod
    def whole(cls, number: int, batches: int) -> "Epoch":
        return cls(number, batches, Batches.of((0, batches)))

    @property
    def is_busy(self) -> bool:
        return bool(self.leases or self.lost)

    @property
    def is_whole(self) -> bool:
        """Nothing of it is left to train."""
        return len(self.done) + len(self.aside) == self.batches

    @property
    def is_untouched(self) -> bool:
        return not (self.is_busy or self.done or self.aside)

    @property
    def probation(self) -> Batches:
        return Batches.of(*((batch, batch + 1) for batch in self.blamed))

    def on_probation(self, session: Session) -> Batches:
        return self.leases.get(session, Batches()) & self.probation

    def lease(self, session: Session, batches: Batches, now: float) -> Span:
        """`batches` follow one another."""
        self.left -= batches
        self._find(batches)
        self.leases[session] = self.leases.get(session, Batches()) | batches
        start, stop = batches.runs[0]
        self.grants[session] = (*self.grants.get(session, ()), Grant(start, stop, now))
        self.issued = max(self.issued, stop)
        return Span(self.number, start, stop - start)

    def finish(self, session: Session, batches: Batches, now: float) -> tuple[Grant, ...]:
        """Done, whoever holds them now. Returns those that were not done before, and when
        `session` took them; `now` where it does not hold them any more.
        """
        news = tuple(
            Grant(start, stop, self._taken_at(session, start, now))
            for start, stop in (batches - self.done).runs
        )
        self.done |= batches
        self.left -= batches
        self.aside -= batches
        self._find(batches)
        for batch in self.blamed.keys() & _numbers(batches):
            del self.blamed[batch]
        for holder in tuple(self.leases):
            self.take_back(holder, batches)
        return news

    def take_back(self, session: Session, batches: Batches) -> Batches:
        """Those of `batches` that `session` held."""
        held = self.leases.get(session, Batches())
        if rest := held - batches:
            self.leases[session] = rest
            self.grants[session] = tuple(g for g in self.grants[session] if _touches(g, rest))
        else:
            self.leases.pop(session, None)
            self.grants.pop(session, None)
        return held & batches

    def lose(self, session: Session, worker: str, *, in_order: bool = False) -> int:
        """Returns how many batches were lost. `in_order`: the worker did not die of them."""
        held = self.leases.get(session, Batches())
        suspects = (self.on_probation(session) or held).lowest(IN_HAND)
        self.take_back(session, held)
        if held:
            self.lost |= held
            self.lost_with = tuple(dict.fromkeys((*self.lost_with, worker)))
            if not in_order:
                self._blame(suspects, worker)
        return len(held)

    def set_aside(self) -> list[SetAside]:
        """The batches set aside."""
        return [SetAside(self.number, b, self.blamed[b]) for b in sorted(_numbers(self.aside))]

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
            "grants": {
                str(session): [[g.start, g.stop, g.taken] for g in grants]
                for session, grants in self.grants.items()
            },
            "blamed": {str(batch): list(workers) for batch, workers in self.blamed.items()},
        }

    @classmethod
    def from_row(cls, number: int, row: dict[str, Any]) -> "Epoch":
        epoch = cls.whole(number, row["batches"])
        epoch.done, epoch.lost = Batches.of(*row["done"]), Batches.of(*row["lost"])
        epoch.lost_with, epoch.issued = tuple(row["lost_with"]), row["issued"]
        epoch.leases = {int(s): Batches.of(*runs) for s, runs in row["leases"].items()}
        epoch.grants = {int(s): tuple(Grant(*g) for g in gs) for s, gs in row["grants"].items()}
        epoch.blamed = {int(batch): tuple(workers) for batch, workers in row["blamed"].items()}
        epoch.aside = epoch.deadly()
        for part in (epoch.done, epoch.lost, epoch.aside, *epoch.leases.values()):
            epoch.left -= part
        return epoch

    def deadly(self) -> Batches:
        """The batches that too many workers died with."""
        deadly = (batch for batch, workers in self.blamed.items() if len(workers) >= DEADLY)
        return Batches.of(*((batch, batch + 1) for batch in deadly))

    def check(self) -> None:
        parts = [self.left, self.done, self.lost, self.aside, *self.leases.values()]
        whole = Batches.of(*(run for part in parts for run in part.runs))
        assert sum(map(len, parts)) == len(whole) == self.batches, "an epoch's parts overlap"
        assert whole == Batches.of((0, self.batches)), "an epoch's parts leave a hole"
        assert all(self.leases.values()), "an empty lease"
        assert self.leases.keys() == self.grants.keys(), "a lease without its grant"
        assert bool(self.lost) == bool(self.lost_with), "lost batches are lost with someone"
        assert Batches.of((self.issued, self.batches)) - self.left == Batches(), "done unseen"
        assert self.aside == self.deadly(), "a deadly batch is not set aside"
        assert not self.done & self.probation, "done, and on probation"

    def _taken_at(self, session: Session, batch: int, otherwise: float) -> float:
        grants = reversed(self.grants.get(session, ()))
        return next((g.taken for g in grants if g.start <= batch < g.stop), otherwise)

    def _blame(self, suspects: Batches, worker: str) -> None:
        for batch in _numbers(suspects):
            self.blamed[batch] = (*self.blamed.get(batch, ()), worker)
        deadly = self.deadly() & suspects
        self.aside |= deadly
        self._find(deadly)

    def _find(self, batches: Batches) -> None:
        self.lost -= batches
        self.lost_with = self.lost_with if self.lost else ()


def _touches(grant: Grant, held: Batches) -> bool:
    return bool(Batches(((grant.start, grant.stop),)) & held)


def _numbers(batches: Batches) -> set[int]:
    return {number for start, stop in batches.runs for number in range(start, stop)}


def _plain(batches: Batches) -> list[list[int]]:
    return [list(run) for run in batches.runs]


def missing(epoch: Epoch) -> Iterable[Span]:
    """What is not done, as spans."""
    rest = Batches.of((0, epoch.batches)) - epoch.done
    return (Span(epoch.number, start, stop - start) for start, stop in rest.runs)
