"""Which batches a loader draws: the batch sampler that leases from the coordinator.

A leased batch is undrawn, then drawn (its indices went to the DataLoader, which may read ahead),
then delivered to the user's loop. Only delivered ones count as trained; the others can be given
back. What a batch holds is told in `orders`, reading samples is `seeding`'s and torch's, the
user's surface is `loader`'s, and data that comes in shards is leased in `sharding`.
"""

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch.utils.data import Sampler

from hubring_common.errors import UsageError
from hubring_common.ids import BatchKey
from hubring_common.messages import Span, spans_of
from hubring_worker.contracts import DataTasks
from hubring_worker.orders import Order
from hubring_worker.seeding import Keyed

NOTHING = object()
"""An answer of torch's that brings no batch."""
REACH = 1024
"""Data epochs that one even pass looks through for batches; beyond, the run has none left."""


class Pass:
    """One iteration of the loader: what it holds and has not delivered."""

    is_claimed = False

    def undelivered(self) -> tuple[Span, ...]:
        raise NotImplementedError


P = TypeVar("P", bound=Pass)


class Feed(Sampler[Any], ABC, Generic[P]):
    """What torch asks what to read next, in the training process, and the loader what came.

    `batch_size` and `drop_last` as torch's BatchSampler has them; frameworks look here.
    """

    batch_size: int | None
    drop_last: bool

    def __init__(self, tasks: DataTasks) -> None:
        self._tasks = tasks
        self._pass: P | None = None
        self._delivered: list[tuple[BatchKey, int]] = []

    def begin(self, epoch: int) -> P | None:
        """Lease the first task of a pass; None: no batch is left of this epoch.

        What an earlier pass holds undelivered goes back first.
        """
        self.give_back()
        self._pass = self._begin(epoch)
        return self._pass

    @abstractmethod
    def _begin(self, epoch: int) -> P | None: ...

    @abstractmethod
    def received(self, under_way: P, answer: Any) -> Any:
        """The batch that torch's next answer brings, counted as delivered; or NOTHING."""

    def leases_of(
        self, done: Collection[BatchKey], returned: Collection[BatchKey]
    ) -> tuple[Collection[BatchKey], Collection[BatchKey]]:
        """As `Drawn` says: here a batch is what is leased."""
        return done, returned

    def take_delivered(self) -> tuple[tuple[BatchKey, ...], int]:
        batches, self._delivered = self._delivered, []
        return tuple(key for key, _ in batches), sum(samples for _, samples in batches)

    def give_back(self) -> None:
        """End the pass that is under way and return what it has not delivered."""
        if self._pass is not None and (spans := self._pass.undelivered()):
            self._tasks.give_back(spans)
        self._pass = None

    def expect(self, under_way: P) -> None:
        """Raises UsageError where `under_way` was ended by `begin` or `give_back`."""
        if self._pass is not under_way:
            raise UsageError(
                "this iteration of the loader ended when another began; its batches went back",
                todo="Finish one iteration before the next, or make a second loader",
            )

    def _claim(self) -> P:
        """The pass to draw from: once, at the first draw; torch makes iterators it never uses."""
        if self._pass is None or self._pass.is_claimed:
            raise UsageError(
                "the batch sampler of a hubring loader was iterated without its loader",
                todo="Iterate the loader itself; do not build another DataLoader from its parts",
            )
        self._pass.is_claimed = True
        return self._pass


@dataclass(slots=True)
class BatchPass(Pass):
    """`room`: batches that it may still draw. `reach`: later epochs that it may go on to."""

    epoch: int
    room: int = sys.maxsize
    reach: int = 0
    drawn: deque[Keyed] = field(default_factory=deque)
    undrawn: deque[BatchKey] = field(default_factory=deque)
    is_claimed: bool = False

    def undelivered(self) -> tuple[Span, ...]:
        return spans_of([*(batch.key for batch in self.drawn), *self.undrawn])


class Leased(Feed[BatchPass]):
    """Batches of a map-style data set, in the DataLoader's order of delivery."""

    def __init__(self, tasks: DataTasks, order: Order, workers_hint: Callable[[], int]) -> None:
        super().__init__(tasks)
        self._order, self._workers_hint = order, workers_hint
        self._frozen_len: int | None = None
        self.batch_size, self.drop_last = order.batch_size, order.drop_last

    def _begin(self, epoch: int) -> BatchPass | None:
        self._frozen_len = self._share()
        begun = BatchPass(epoch)
        return begun if self._lease(begun) else None

    def __iter__(self) -> Iterator[Keyed]:
        under_way = self._claim()
        while under_way.room and (under_way.undrawn or self._lease(under_way)):
            under_way.room -= 1
            batch = self._order.batch(under_way.undrawn.popleft())
            under_way.drawn.append(batch)
            yield batch

    def received(self, under_way: BatchPass, answer: Any) -> Any:
        """Pairs batches with keys by order alone: torch keeps it, as in_order is True."""
        batch = under_way.drawn.popleft()
        self._delivered.append((batch.key, len(batch)))
        return answer

    def __len__(self) -> int:
        """A worker's share of an epoch's batches, as it was when the pass began."""
        return self._share() if self._frozen_len is None else self._frozen_len

    def _lease(self, under_way: BatchPass) -> bool:
        while (span := self._tasks.take(under_way.epoch)) is None:
            if not under_way.reach:
                return False
            under_way.epoch, under_way.reach = under_way.epoch + 1, under_way.reach - 1
        self._order.check(span.epoch)
        under_way.undrawn.extend(span.keys())
        return True

    def _share(self) -> int:
        return -(-self._order.batches // self._workers())

    def _workers(self) -> int:
        return max(1, self._workers_hint())


class EvenlyLeased(Leased):
    """Passes of one length, for those who count on len(): exactly so many batches each.

    The data epochs follow one another as one stream; a pass takes its batches from where the
    workers have got to, be that in an earlier or in the next epoch. So no worker waits for
    another, and none comes out short. The price: with W workers a pass takes W * len batches of
    an epoch's B, so that the epochs of the data fall behind the passes by B mod W batches each;
    that many of the last epoch stay untrained. With fewer batches than workers it is the other
    way round.
    """

    _next = -1
    """The epoch where the next pass begins; -1: none has begun."""

    def __init__(self, tasks: DataTasks, order: Order, workers_hint: Callable[[], int]) -> None:
        super().__init__(tasks, order, workers_hint)
        # Now: a worker hears first of all how many are expected, later only how many are there.
        self._len = max(1, order.batches // self._workers())

    def _begin(self, epoch: int) -> BatchPass | None:
        start = epoch if self._next < 0 else self._next
        begun = BatchPass(start, room=len(self), reach=REACH)
        return begun if self._lease(begun) else None

    def __len__(self) -> int:
        """A worker's whole share of an epoch, as it was at first: it is believed."""
        return self._len

    def give_back(self) -> None:
        """What goes back is of epochs that the others may have left behind: begin there."""
        if self._pass is not None:
            back = [span.epoch for span in self._pass.undelivered()]
            self._next = min([self._pass.epoch, *back])
        super().give_back()
