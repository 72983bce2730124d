"""The leased loader: torch's DataLoader, with batches that come from the coordinator.

What the user sees; what is refused is told in `demands`. Leases are `leasing`'s, for shards
`sharding`'s, orders `orders`', seeds `seeding`'s.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from os import PathLike
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from hubring_common.errors import SettingsMismatch, UsageError
from hubring_common.ids import BatchKey
from hubring_worker.contracts import DataTasks
from hubring_worker.demands import Demand, held_options, list_of_shards
from hubring_worker.leasing import NOTHING, EvenlyLeased, Feed, Leased
from hubring_worker.orders import Order, RangeOrder, SampledOrder
from hubring_worker.sampling import HANDFUL, content_digest
from hubring_worker.sealed import require_sealed
from hubring_worker.seeding import SeededDataset, kept_generators, mix
from hubring_worker.sharding import LeasedShards, ShardOrder
from hubring_worker.streams import CollateRead, ShardReader

END = object()


class HubLoader(DataLoader[Any]):
    """A DataLoader that yields the batches leased to this worker.

    Over all workers, each sample comes once an epoch. The i-th iteration is epoch i, unless
    `set_epoch` says otherwise; it may also yield batches of an earlier epoch whose worker died,
    and is empty where the epoch is done already. A batch holds the same samples and the same
    random augmentation whoever draws it; the process's own generators are left alone.

    `dataset` is map-style; or, with `shards` (a list, the same on all workers), a function
    make(shard) that gives a shard's samples, the same in the same order each time. Then the
    batches are made inside a shard, `shuffle` and `drop_last` are of shards and of each shard's
    last batch, and len() is not known.

    `sampler`, `batch_sampler`: of your own; see `SampledOrder` for what they may depend on.
    `even`: exactly len() batches an iteration; see `EvenlyLeased` for the price.
    `digest`: what the data is, in a word of yours; by default that of a handful of samples, or
    of the list of shards; False: nothing. `sealed`: a folder whose files must be as they were
    when `hubring data seal` was run on it.

    `dataloader_options` are torch's: num_workers, collate_fn, pin_memory, prefetch_factor, ...
    `workers_hint` is the number of workers in the run now, this one included. Leaving a loop
    early is fine: the next iteration, or `give_back`, returns the batches read ahead. After an
    error in the data set the iteration is over, and the batch at fault goes back too.

    Raises UsageError where an argument cannot be held or a sealed file was changed,
    SettingsMismatch where the run has other data; iterating raises what DataTasks raises.
    """

    # Accelerate's prepare() would build a plain DataLoader of our parts, and deliveries would
    # go uncounted. With this it keeps ours.
    _is_accelerate_prepared = True

    def __init__(
        self,
        tasks: DataTasks,
        dataset: Any,
        *,
        seed: int,
        workers_hint: Callable[[], int],
        batch_size: int = 1,
        shuffle: bool | None = False,
        drop_last: bool = False,
        sampler: Any = None,
        batch_sampler: Any = None,
        shards: Any = None,
        even: bool = False,
        digest: str | bool | None = None,
        sealed: str | PathLike[str] | None = None,
        **dataloader_options: Any,
    ) -> None:
        options = held_options(dataloader_options)
        demand = Demand(batch_size, bool(shuffle), drop_last, sampler, batch_sampler, shards, even)
        demand.check(dataset)
        settings = {"sealed": "no" if sealed is None else require_sealed(sealed)}
        order: Order | ShardOrder
        if shards is None:
            order = _order(dataset, demand, seed)
            self._feed: Feed[Any] = (EvenlyLeased if even else Leased)(tasks, order, workers_hint)
            read: Any = SeededDataset(dataset)
            settings |= {"samples": str(len(dataset)), "even": str(even)} | order.settings()
            settings["content"] = _content(dataset, order, digest, options)
        else:
            order = ShardOrder(list_of_shards(shards), shuffle=demand.shuffle, seed=seed)
            read = _reader(dataset, order, demand)
            self._feed = LeasedShards(tasks, order, read, options.get("num_workers", 0))
            settings |= order.settings() | _stream_settings(demand, digest)
            options["collate_fn"] = CollateRead(options.get("collate_fn") or default_collate)
        self._next_epoch = 0
        super().__init__(
            read,
            batch_sampler=self._feed,
            generator=torch.Generator().manual_seed(mix(seed)),
            **options,
        )
        # torch forgets both when it is given a batch sampler, and then forbids assignment.
        vars(self).update(batch_size=self._feed.batch_size, drop_last=self._feed.drop_last)
        _declare(tasks, settings, order.batches)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch, counted from 0; those after it count on.

        With `even` the first iteration only: those after it go on where it ended.
        """
        if epoch < 0:
            raise UsageError(f"epoch {epoch} is below 0", todo="Count epochs from 0")
        self._next_epoch = epoch

    def take_delivered(self) -> tuple[tuple[BatchKey, ...], int]:
        """The keys of the batches handed out since the last call, and their samples."""
        return self._feed.take_delivered()

    def leases_of(
        self, done: Collection[BatchKey], returned: Collection[BatchKey]
    ) -> tuple[Collection[BatchKey], Collection[BatchKey]]:
        """What was leased, of batches that every server has, and of those to train again."""
        return self._feed.leases_of(done, returned)

    def give_back(self) -> None:
        """End the iteration under way; batches read ahead, but not handed out, go back."""
        self._feed.give_back()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        under_way = self._feed.begin(self._next_epoch)
        self._next_epoch += 1
        if under_way is None:
            # A joiner passes over many finished epochs: start no processes for them.
            return iter(())
        return self._deliver(under_way, super().__iter__())

    def _deliver(self, under_way: Any, answers: Iterator[Any]) -> Iterator[Any]:
        while (answer := self._read(under_way, answers)) is not END:
            if (batch := self._feed.received(under_way, answer)) is not NOTHING:
                yield batch

    def _read(self, under_way: Any, answers: Iterator[Any]) -> Any:
        self._feed.expect(under_way)
        # Without processes of its own it seeds the generators of this one, collate_fn included.
        with nullcontext() if self.num_workers else kept_generators():
            return next(answers, END)


def _order(dataset: Any, demand: Demand, seed: int) -> Order:
    """Raises UsageError where it has no batch."""
    if demand.batch_sampler is not None:
        return SampledOrder(demand.batch_sampler, batch_size=None, drop_last=False, seed=seed)
    size, drop_last = demand.batch_size, demand.drop_last
    if demand.sampler is not None:
        return SampledOrder(demand.sampler, batch_size=size, drop_last=drop_last, seed=seed)
    samples = len(dataset)
    if drop_last and samples < size:
        raise UsageError(
            f"drop_last=True leaves no batch: {samples} samples, batch_size {size}",
            todo="Leave drop_last out, or give a smaller batch_size",
        )
    return RangeOrder(samples, size, shuffle=demand.shuffle, drop_last=drop_last, seed=seed)


def _reader(make: Any, order: ShardOrder, demand: Demand) -> ShardReader:
    return ShardReader(
        make,
        order.shards,
        batch_size=demand.batch_size,
        drop_last=demand.drop_last,
        seed=order.seed,
    )


def _content(
    dataset: Any, order: Order, digest: str | bool | None, options: Mapping[str, Any]
) -> str:
    if digest is None or digest is True:
        return content_digest(dataset, order.handful(HANDFUL), options)
    return digest or "not looked at"


def _stream_settings(demand: Demand, digest: str | bool | None) -> dict[str, str]:
    own = digest is not None and digest is not True
    told = {"content": str(digest or "not looked at")} if own else {}
    return {"batch_size": str(demand.batch_size), "drop_last": str(demand.drop_last)} | told


def _declare(tasks: DataTasks, settings: Mapping[str, str], batches: int) -> None:
    try:
        tasks.declare(settings, batches)
    except SettingsMismatch as error:
        if error.fact.startswith("content is"):
            error.todo = (
                "give every worker the same data; where they only decode it differently, "
                "give digest=False, or a digest= of your own"
            )
        raise
