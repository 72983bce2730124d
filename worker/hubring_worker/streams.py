"""Data that comes in shards, as the process that reads it sees it: batches made inside a shard.

So a batch's key, (epoch, shard << 32 | i), says exactly which samples it holds, whoever reads it,
if only `make(shard)` gives the same samples in the same order each time. Which shard is read when
is told in `sharding`.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from hubring_common.errors import UsageError
from hubring_common.ids import BatchKey
from hubring_worker.seeding import mix, seed_generators

SHARD_BITS = 32
"""The shard's number stands above them in a key, the batch's below."""


def batch_key(shard: BatchKey, i: int) -> BatchKey:
    """Of batch `i` of a leased shard, (epoch, place in the epoch's order)."""
    return BatchKey(shard.epoch, shard.batch << SHARD_BITS | i)


def shard_of(key: BatchKey) -> tuple[BatchKey, int]:
    return BatchKey(key.epoch, key.batch >> SHARD_BITS), key.batch & (1 << SHARD_BITS) - 1


class Wanted(NamedTuple):
    """Batch `i` of the leased shard `lease`, which is number `shard` of the user's list."""

    lease: BatchKey
    shard: int
    i: int


class Read(NamedTuple):
    """What comes back. No samples: the shard had ended before this batch."""

    batch: Any
    samples: int


class CollateRead:
    """The user's collate_fn, with the number of samples beside what it makes."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Read:
        return Read(self.collate(samples) if samples else None, len(samples))


@dataclass(slots=True)
class _Open:
    """A shard that is being read; `at` is its next batch."""

    lease: BatchKey
    samples: Iterator[Any] | None = None
    at: int = 0
    has_ended: bool = False


class ShardReader(Dataset[Any]):
    """What torch reads from: one shard open at a time.

    It answers any Wanted. One that goes on where the last ended costs nothing more; one further
    on reads what lies between; one further back opens the shard anew.
    """

    def __init__(
        self,
        make: Callable[[Any], Iterable[Any]],
        shards: Sequence[Any],
        *,
        batch_size: int,
        drop_last: bool,
        seed: int,
    ) -> None:
        self.make, self.shards = make, shards
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self._open: _Open | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": None}

    def __getitems__(self, wanted: Wanted | None) -> list[Any]:
        """The samples; none for None, and past the shard's end."""
        if wanted is None:
            return []
        under_way = self._open
        if under_way is None or not _serves(under_way, wanted):
            self.close()
            under_way = self._open = _Open(wanted.lease)
        try:
            return self._read(under_way, wanted)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the generator that is open; what is not one may be the user's to keep."""
        under_way, self._open = self._open, None
        if under_way is not None and isinstance(under_way.samples, Generator):
            under_way.samples.close()

    def _read(self, under_way: _Open, wanted: Wanted) -> list[Any]:
        samples: list[Any] = []
        while under_way.at <= wanted.i and not under_way.has_ended:
            seed_generators(mix(self.seed, *batch_key(under_way.lease, under_way.at)))
            samples = self._next(under_way, wanted.shard)
            under_way.at += bool(samples)
        return samples if samples and under_way.at == wanted.i + 1 else []

    def _next(self, under_way: _Open, shard: int) -> list[Any]:
        if under_way.samples is None:
            under_way.samples = self._iterate(self.shards[shard])
        samples = list(islice(under_way.samples, self.batch_size))
        under_way.has_ended = len(samples) < self.batch_size
        return [] if self.drop_last and under_way.has_ended else samples

    def _iterate(self, shard: Any) -> Iterator[Any]:
        samples = self.make(shard)
        if not isinstance(samples, Iterable):
            raise UsageError(
                f"make({shard!r}) gave a {type(samples).__name__}, which cannot be iterated",
                todo="Return an iterable of samples, or write make as a generator",
            )
        return iter(samples)


def _serves(under_way: _Open, wanted: Wanted) -> bool:
    return under_way.lease == wanted.lease and under_way.at <= wanted.i
