"""Shards of a stream, leased one by one, and when one is done: the training process's side.

The coordinator leases whole shards, the servers hold the batches inside them as done. A shard is
done when its end was reached and every batch of it was acknowledged. Dies its worker before, then
another reads it from the beginning, and the servers confess the batches that they have.
Reading is `streams`'s; what all feeds have in common is `leasing`'s.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle
from typing import Any

import torch

from hubring_common.ids import BatchKey
from hubring_common.messages import Span, spans_of
from hubring_worker.canonical import hexdigest
from hubring_worker.contracts import DataTasks
from hubring_worker.leasing import NOTHING, Feed, Pass
from hubring_worker.seeding import mix
from hubring_worker.streams import Read, ShardReader, Wanted, batch_key, shard_of

REMEMBERED = 256
"""Shards given back half trained whose trained batches are remembered, to be passed over."""


@dataclass(slots=True, eq=False)
class Shard:
    """A leased shard. `next` is the next batch to ask for."""

    lease: BatchKey
    done: set[int]
    next: int = 0
    has_ended: bool = False
    pending: set[int] = field(default_factory=set)
    """Delivered, and not yet acknowledged by every server."""
    refused: set[int] = field(default_factory=set)
    """Of a push of which a server had another batch: to be trained again."""

    def ask(self) -> int:
        """The next batch that is not known to be done."""
        while self.next in self.done:
            self.next += 1
        self.next += 1
        return self.next - 1

    @property
    def is_over(self) -> bool:
        return self.has_ended and not self.pending


class Books:
    """The shards that this worker holds, and what came of their batches."""

    def __init__(self) -> None:
        self.held: dict[BatchKey, Shard] = {}
        self._known: dict[BatchKey, set[int]] = {}

    def open(self, lease: BatchKey) -> Shard:
        shard = self.held[lease] = Shard(lease, self._known.pop(lease, set()))
        return shard

    def drop(self, lease: BatchKey) -> None:
        """It goes back; of what is done in it, this worker reads nothing twice."""
        shard = self.held.pop(lease)
        self._known[lease] = shard.done
        for oldest in list(self._known)[:-REMEMBERED]:
            del self._known[oldest]

    def settle(self, done: Iterable[BatchKey], returned: Iterable[BatchKey]) -> None:
        for lease, i in map(shard_of, done):
            if shard := self.held.get(lease):
                shard.done.add(i)
                shard.pending.discard(i)
                shard.refused.discard(i)
            elif lease in self._known:
                self._known[lease].add(i)
        for lease, i in map(shard_of, returned):
            if (shard := self.held.get(lease)) and i in shard.pending:
                shard.pending.remove(i)
                shard.refused.add(i)

    def take_over(self) -> tuple[list[BatchKey], list[BatchKey]]:
        """The shards that are (done, to be trained again); they are held no longer."""
        over = [shard for shard in self.held.values() if shard.is_over]
        again = [shard.lease for shard in over if shard.refused]
        done = [shard.lease for shard in over if not shard.refused]
        for lease in again:
            self.drop(lease)
        for lease in done:
            del self.held[lease]
        return done, again


@dataclass(slots=True, eq=False)
class ShardPass(Pass):
    """`lanes`: the shard that each process of the DataLoader reads. torch gives its requests to
    the processes in turn, so each lane's go to one process.
    """

    epoch: int
    books: Books
    lanes: list[Shard | None]
    undrawn: deque[BatchKey] = field(default_factory=deque)
    drawn: deque[tuple[int, Shard | None, int]] = field(default_factory=deque)
    is_exhausted: bool = False
    is_claimed: bool = False

    def undelivered(self) -> tuple[Span, ...]:
        cut = [shard.lease for shard in self.books.held.values() if not shard.has_ended]
        return spans_of(sorted([*cut, *self.undrawn]))


class ShardOrder:
    """The order of the shards in each epoch: a pure function of seed and epoch."""

    def __init__(self, shards: Sequence[Any], *, shuffle: bool, seed: int) -> None:
        self.shards, self.shuffle, self.seed = shards, shuffle, seed
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    @property
    def batches(self) -> int:
        """What is leased: shards."""
        return len(self.shards)

    def settings(self) -> dict[str, str]:
        """`content` is that of the list: the shards themselves are not opened."""
        return {
            "shards": str(len(self.shards)),
            "shuffle": str(self.shuffle),
            "seed": str(self.seed),
            "content": hexdigest(list(self.shards)),
        }

    def number(self, lease: BatchKey) -> int:
        """The place in the user's list of a leased shard."""
        return self._shuffled(lease.epoch)[lease.batch] if self.shuffle else lease.batch

    def _shuffle(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order: list[int] = torch.randperm(len(self.shards), generator=generator).tolist()
        return order


class LeasedShards(Feed[ShardPass]):
    """Batches of shards: one shard a process of the DataLoader at a time."""

    def __init__(
        self, tasks: DataTasks, order: ShardOrder, reader: ShardReader, processes: int
    ) -> None:
        super().__init__(tasks)
        self._order, self._reader, self._lanes = order, reader, max(1, processes)
        self._books = Books()
        self.batch_size, self.drop_last = reader.batch_size, reader.drop_last

    def _begin(self, epoch: int) -> ShardPass | None:
        begun = ShardPass(epoch, self._books, [None] * self._lanes)
        return begun if self._lease(begun) else None

    def give_back(self) -> None:
        under_way = self._pass
        super().give_back()
        if under_way is not None:
            for lease in [s.lease for s in self._books.held.values() if not s.has_ended]:
                self._books.drop(lease)
        self._reader.close()

    def __iter__(self) -> Iterator[Wanted | None]:
        """None for a process that has nothing to do while others still read."""
        under_way = self._claim()
        for lane in cycle(range(self._lanes)):
            shard = under_way.lanes[lane] or self._open(under_way, lane)
            if shard is None and not any(under_way.lanes):
                return
            i = shard.ask() if shard else 0
            under_way.drawn.append((lane, shard, i))
            yield Wanted(shard.lease, self._order.number(shard.lease), i) if shard else None

    def received(self, under_way: ShardPass, answer: Read) -> Any:
        lane, shard, i = under_way.drawn.popleft()
        if shard is None:
            return NOTHING
        if not answer.samples:
            self._end(under_way, lane, shard)
            return NOTHING
        shard.pending.add(i)
        self._delivered.append((batch_key(shard.lease, i), answer.samples))
        return answer.batch

    def leases_of(
        self, done: Collection[BatchKey], returned: Collection[BatchKey]
    ) -> tuple[Collection[BatchKey], Collection[BatchKey]]:
        self._books.settle(done, returned)
        return self._books.take_over()

    def _end(self, under_way: ShardPass, lane: int, shard: Shard) -> None:
        """Said again by each answer to what was asked for past the end meanwhile."""
        shard.has_ended = True
        if under_way.lanes[lane] is shard:
            under_way.lanes[lane] = None

    def _open(self, under_way: ShardPass, lane: int) -> Shard | None:
        if not under_way.undrawn and not self._lease(under_way):
            return None
        shard = under_way.lanes[lane] = self._books.open(under_way.undrawn.popleft())
        return shard

    def _lease(self, under_way: ShardPass) -> bool:
        if under_way.is_exhausted:
            return False
        span = self._tasks.take(under_way.epoch)
        under_way.is_exhausted = span is None
        under_way.undrawn.extend(span.keys() if span else ())
        return span is not None
