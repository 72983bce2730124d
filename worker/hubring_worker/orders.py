"""What the batches of an epoch are: pure functions of seed and epoch, so that a key says it all.

A batch has the same samples whoever trains it. Which batches this worker draws is `leasing`'s;
data that comes in shards has its own order in `sharding`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import torch

from hubring_common.errors import UsageError
from hubring_common.ids import BatchKey
from hubring_worker.canonical import hexdigest
from hubring_worker.seeding import Keyed, kept_generators, mix, seed_generators


class Order(Protocol):
    """The batches of every epoch."""

    @property
    def batches(self) -> int:
        """Of one epoch; the same for all."""
        ...

    @property
    def batch_size(self) -> int | None: ...

    @property
    def drop_last(self) -> bool: ...

    def settings(self) -> dict[str, str]:
        """What all workers must agree on, as the run's record of the data shows it."""
        ...

    def check(self, epoch: int) -> None:
        """Raises UsageError where the epoch is not what `batches` says."""
        ...

    def batch(self, key: BatchKey) -> Keyed: ...

    def handful(self, count: int) -> list[Any]:
        """Up to `count` indices of the data set, the same on every worker."""
        ...


class RangeOrder:
    """All samples, in sequence or shuffled; a batch is a range of that."""

    def __init__(
        self, samples: int, batch_size: int, *, shuffle: bool, drop_last: bool, seed: int
    ) -> None:
        self.samples, self.batch_size = samples, batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        # Two: this epoch's, and an earlier one's that lost a worker. 8 bytes a sample each.
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    @property
    def batches(self) -> int:
        return parts(self.samples, self.batch_size, drop_last=self.drop_last)

    def settings(self) -> dict[str, str]:
        names = ("batch_size", "shuffle", "drop_last", "samples", "seed")
        return {name: str(getattr(self, name)) for name in names}

    def check(self, epoch: int) -> None:
        """Every epoch has as many."""

    def batch(self, key: BatchKey) -> Keyed:
        first = key.batch * self.batch_size
        end = min(first + self.batch_size, self.samples)
        indices = (
            self._shuffled(key.epoch)[first:end].tolist() if self.shuffle else range(first, end)
        )
        return Keyed(indices, key, mix(self.seed, *key))

    def handful(self, count: int) -> list[Any]:
        return sorted({mix(self.samples, i) % self.samples for i in range(count)})

    def _shuffle(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        return torch.randperm(self.samples, generator=generator)


class SampledOrder:
    """What the user's own sampler, or batch sampler, gives under generators seeded by the epoch.

    It is read whole on every worker: at once for epochs 0 and 1, whose digests are declared, and
    for epoch 0 a second time. A sampler that depends on more than the global generators, its own
    `generator` and `set_epoch` would differ between workers, and shows itself there.

    Raises UsageError where the sampler does so, has no length, or is empty.
    """

    def __init__(self, sampler: Any, *, batch_size: int | None, drop_last: bool, seed: int) -> None:
        """`batch_size` None: it is a batch sampler."""
        self._sampler, self._name = sampler, type(sampler).__name__
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        if not hasattr(sampler, "__len__"):
            fact = f"{self._name} has no len(), so that nobody knows where an epoch ends"
            raise UsageError(fact, todo="Give the sampler a __len__")
        self._drawn = lru_cache(maxsize=2)(self._draw)
        self.batches = len(self._drawn(0))
        self._digests = [hexdigest(self._draw(epoch)) for epoch in (0, 1, 0)]
        self._check_pure()
        self.check(1)

    def settings(self) -> dict[str, str]:
        order = f"{self._name} {self._digests[0]} {self._digests[1]}"
        names = ("batch_size", "drop_last", "seed")
        return {name: str(getattr(self, name)) for name in names} | {"sampler": order}

    def check(self, epoch: int) -> None:
        if (found := len(self._drawn(epoch))) != self.batches:
            fact = f"{self._name} gives {found} batches in epoch {epoch}, {self.batches} in epoch 0"
            raise UsageError(fact, todo="Make it give as many batches in every epoch")

    def batch(self, key: BatchKey) -> Keyed:
        self.check(key.epoch)
        return Keyed(self._drawn(key.epoch)[key.batch], key, mix(self.seed, *key))

    def handful(self, count: int) -> list[Any]:
        indices = [index for batch in self._drawn(0) for index in batch]
        return [indices[mix(len(indices), i) % len(indices)] for i in range(count)]

    def _check_pure(self) -> None:
        if self._digests[0] != self._digests[2]:
            raise UsageError(
                f"{self._name} gave two orders for the same seed and epoch, so workers would too",
                todo="Draw from the global generators or a `generator` attribute, and keep "
                "nothing from one epoch to the next but what set_epoch(epoch) says",
            )
        if not self.batches or not all(self._drawn(0)):
            raise UsageError(
                f"{self._name} gives no batch, or an empty one",
                todo="Look at its source, batch_size and drop_last",
            )

    def _draw(self, epoch: int) -> list[Sequence[Any]]:
        with _seeded(self._sampler, epoch, mix(self.seed, epoch)):
            limit = len(self._sampler)
            drawn = list(islice(self._sampler, limit + 1))
        if len(drawn) > limit:
            fact = f"{self._name} gives more than its len(), {limit}, says"
            raise UsageError(fact, todo="Make its __len__ true")
        if (size := self.batch_size) is None:
            return [list(batch) for batch in drawn]
        count = parts(len(drawn), size, drop_last=self.drop_last)
        return [drawn[size * i : size * (i + 1)] for i in range(count)]


def parts(samples: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches that so many samples make."""
    whole, rest = divmod(samples, batch_size)
    return whole + (rest > 0 and not drop_last)


@contextmanager
def _seeded(sampler: Any, epoch: int, seed: int) -> Iterator[None]:
    """Tells the sampler and those inside it the epoch, and seeds whatever they draw from."""
    chain = list(_chain(sampler))
    own = [g for s in chain if isinstance(g := getattr(s, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in own]
    with kept_generators():
        seed_generators(seed)
        for inner in chain:
            if callable(set_epoch := getattr(inner, "set_epoch", None)):
                set_epoch(epoch)
        for generator in own:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            for generator, state in zip(own, states, strict=True):
                generator.set_state(state)


def _chain(sampler: Any) -> Iterator[Any]:
    """The sampler, the one that it draws from, and so on: BatchSampler(RandomSampler(...))."""
    seen: set[int] = set()
    while sampler is not None and id(sampler) not in seen:
        seen.add(id(sampler))
        yield sampler
        sampler = getattr(sampler, "sampler", None)
