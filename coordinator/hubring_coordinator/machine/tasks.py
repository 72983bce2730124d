"""The data tasks of all epochs: how many batches go to whom, and in which order.

A *task* is what a worker does in about 2 s. It takes more of them ahead, for a minute or two, so
that it trains on while the coordinator is away; who finds nothing left is given a part of what
another has not begun (work stealing: Blumofe and Leiserson, 1999), by `sharing`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from hubring_common.errors import InvalidMessage
from hubring_common.ids import Session
from hubring_common.messages import EpochStatus, SetAside, Span
from hubring_coordinator.machine.batches import Batches
from hubring_coordinator.machine.epoch import Epoch, Grant

TASK_SECONDS = 2.0
HORIZON = 120.0
"""Seconds of its own work that a worker may hold. It asks again at half of it: 60 s are there."""
EPOCHS_AHEAD = 256
"""Epochs that a worker may hold tasks of; with short ones this ends before HORIZON does."""
FIRST_TASK = 10
"""Batches of a task, at most, while a worker's speed is not known."""
EPOCHS_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Wish:
    """What a worker asks for. `batches` in an epoch; `workers` share it; `end`: the first epoch
    that the run will not have; `pace` in seconds a batch, 0: not known.
    """

    session: Session
    epoch: int
    batches: int
    workers: int
    now: float
    pace: float = 0.0
    end: int = 1 << 62


def task_length(pool: int, workers: int, pace: float = 0.0) -> int:
    """TASK_SECONDS of work, and at most half of each worker's share of `pool` batches: guided
    self-scheduling (Polychronopoulos and Kuck, 1987). At least 1.
    """
    longest = max(1, round(TASK_SECONDS / pace)) if pace else FIRST_TASK
    return min(longest, max(1, -(-pool // (2 * max(1, workers)))))


class Tasks:
    """All epochs so far. `touch` hears the number of an epoch that changed."""

    def __init__(self, epochs: Iterable[Epoch], touch: Callable[[int], None]) -> None:
        self.epochs = {epoch.number: epoch for epoch in epochs}
        self._touch = touch
        self._busy = {e.number: e for e in self.epochs.values() if e.is_busy}
        self.done = sum(e.is_whole for e in self.epochs.values())
        """Epochs of which nothing is left."""
        self._reached = max((e.number for e in self.epochs.values() if e.done), default=-1)
        """The last epoch that a worker is known to have come to."""

    def take(self, wish: Wish) -> Span | None:
        """Lease a task: lost batches of epochs up to the wished one first, then what is left of
        it. Batches on probation come last, and one at a time.
        """
        if wish.epoch >= wish.end:
            return None
        self._reached = max(self._reached, wish.epoch)
        earlier = self.first_lost()
        if earlier is not None and earlier.number <= wish.epoch:
            return self._lease_some(earlier, earlier.lost, wish)
        epoch = self._open(wish.epoch, wish.batches)
        return self._lease_some(epoch, epoch.left, wish) if epoch.left else None

    def take_ahead(self, wish: Wish) -> tuple[Span, ...]:
        """Lease what the session may hold besides: all that is left of this epoch, so that it
        does not end for want of an answer, and a share of the next ones, for HORIZON.
        """
        if not wish.pace or any(e.on_probation(wish.session) for e in self._busy.values()):
            return ()
        room = int(HORIZON / wish.pace)
        spans: list[Span] = []
        for number in range(wish.epoch, min(wish.epoch + EPOCHS_AHEAD, wish.end)):
            if room <= 0:
                break
            epoch = self._open(number, wish.batches)
            share = len(epoch.left) if number == wish.epoch else self._share(epoch, wish)
            spans += self._lease_tasks(epoch, min(room, share), wish)
            room -= len(epoch.leases.get(wish.session, ()))
        return tuple(spans)

    def settle(
        self, session: Session, done: Iterable[Span], returned: Iterable[Span], now: float
    ) -> list[tuple[Grant, ...]]:
        """Returns, for each of `done`, what was not done before. Raises InvalidMessage, and
        changes nothing, where a span was never leased.
        """
        finished = [(self._issued(span), _batches(span)) for span in done]
        back = [(self._issued(span), _batches(span)) for span in returned]
        news = []
        for epoch, batches in finished:
            self._reached = max(self._reached, epoch.number)
            was_whole = epoch.is_whole
            news.append(epoch.finish(session, batches, now))
            self.done += epoch.is_whole and not was_whole
        for epoch, batches in back:
            epoch.left |= epoch.take_back(session, batches)
        for epoch, _ in (*finished, *back):
            self._changed(epoch)
        return news

    def release(self, session: Session) -> None:
        """The script came to its end: what it still holds is left, and others may not want it."""
        for epoch in self._held_by(session):
            epoch.left |= epoch.take_back(session, epoch.leases[session])
            self._changed(epoch)

    def lose(self, session: Session, worker: str, *, in_order: bool = False) -> int:
        """The session died, or left `in_order` before its script's end. Returns how many batches
        others must train in its place.

        Those of epochs that nobody came to are not: perhaps the script has no such epoch.
        """
        count = 0
        for epoch in self._held_by(session):
            if epoch.number > self._reached:
                epoch.left |= epoch.take_back(session, epoch.leases[session])
            else:
                count += epoch.lose(session, worker, in_order=in_order)
                self.done += epoch.is_whole
            self._changed(epoch)
        return count

    # --- questions ---

    def whole_below(self, number: int) -> int:
        """The first epoch from `number` on that has batches which are with nobody. A worker may
        come to an epoch's end by itself, with the coordinator away, if the epoch is below.
        """
        while number in self.epochs and not self.epochs[number].left:
            number += 1
        return number

    def held(self, session: Session) -> int:
        """Batches that it holds, of all epochs."""
        return sum(len(epoch.leases.get(session, ())) for epoch in self._busy.values())

    def at_work(self, session: Session) -> int:
        """The earliest epoch that it holds batches of; -1: it holds none."""
        return min((epoch.number for epoch in self._held_by(session)), default=-1)

    def holders(self, upto: int) -> dict[Session, int]:
        """Session -> batches that it holds of the epochs up to `upto`."""
        held: dict[Session, int] = {}
        for epoch in self._busy.values():
            for session, batches in epoch.leases.items() if epoch.number <= upto else ():
                held[session] = held.get(session, 0) + len(batches)
        return held

    def holders_in(self, number: int) -> dict[Session, int]:
        """Session -> batches that it holds of this epoch."""
        epoch = self._busy.get(number)
        return {s: len(held) for s, held in epoch.leases.items()} if epoch else {}

    @property
    def is_leased(self) -> bool:
        return any(epoch.leases for epoch in self._busy.values())

    def first_lost(self) -> Epoch | None:
        """The earliest epoch that lost batches with a worker."""
        return min((e for e in self._busy.values() if e.lost), key=_number, default=None)

    def set_aside(self) -> tuple[SetAside, ...]:
        return tuple(batch for _, e in sorted(self.epochs.items()) for batch in e.set_aside())

    def begun(self) -> list[Epoch]:
        """The epochs of which something is done, and those before; the first, if none is."""
        last = max((e.number for e in self.epochs.values() if e.done or e.aside), default=0)
        return [self.epochs[number] for number in sorted(self.epochs) if number <= last]

    def status(self) -> tuple[EpochStatus, ...]:
        return tuple(epoch.status() for epoch in self.begun()[-EPOCHS_SHOWN:])

    def check(self) -> None:
        for epoch in self.epochs.values():
            epoch.check()
        assert self._busy == {e.number: e for e in self.epochs.values() if e.is_busy}
        assert self.done == sum(epoch.is_whole for epoch in self.epochs.values())

    # --- parts ---

    def _open(self, number: int, batches: int) -> Epoch:
        if number not in self.epochs:
            self.epochs[number] = Epoch.whole(number, batches)
            self._touch(number)
        return self.epochs[number]

    def _lease_some(self, epoch: Epoch, pool: Batches, wish: Wish) -> Span:
        if clean := pool - epoch.probation:
            batches = clean.first(task_length(len(clean), wish.workers, wish.pace))
        else:
            batches = pool.first(1)
        return self._lease(epoch, batches, wish)

    def _share(self, epoch: Epoch, wish: Wish) -> int:
        """What makes the session's part of the batches to do as large as another's."""
        held = {session: len(batches) for session, batches in epoch.leases.items()}
        to_do = len(epoch.left - epoch.probation) + sum(held.values())
        return -(-to_do // max(1, wish.workers)) - held.get(wish.session, 0)

    def _lease_tasks(self, epoch: Epoch, count: int, wish: Wish) -> Iterator[Span]:
        """`count` batches, or what there is, in tasks."""
        task = max(1, round(TASK_SECONDS / wish.pace))
        while count > 0 and (pool := epoch.left - epoch.probation):
            span = self._lease(epoch, pool.first(min(count, task)), wish)
            count -= span.count
            yield span

    def _lease(self, epoch: Epoch, batches: Batches, wish: Wish) -> Span:
        span = epoch.lease(wish.session, batches, wish.now)
        self._changed(epoch)
        return span

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
