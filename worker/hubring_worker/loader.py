"""The leased loader: torch's DataLoader, with batches that come from the coordinator.

What the user sees, and what is refused. Leases and order are `leasing`'s, seeds `seeding`'s.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from hubring_common.errors import UsageError
from hubring_common.ids import BatchKey
from hubring_worker.contracts import DataTasks
from hubring_worker.leasing import Leased, Order, Pass
from hubring_worker.seeding import Keyed, SeededDataset, kept_generators, mix

END = object()


class HubLoader(DataLoader[Any]):
    """A DataLoader over a map-style data set that yields the batches leased to this worker.

    Over all workers, each sample comes once an epoch. The i-th iteration is epoch i, unless
    `set_epoch` says otherwise; it may also yield batches of an earlier epoch whose worker died,
    and is empty where the epoch is done already. A batch holds the same samples and the same
    random augmentation whoever draws it; the process's own generators are left alone.

    `dataloader_options` are torch's: num_workers, collate_fn, pin_memory, prefetch_factor, ...
    `workers_hint` is the number of workers in the run now, this one included. Leaving a loop
    early is fine: the next iteration, or `give_back`, returns the batches read ahead. After an
    error in the data set the iteration is over, and the batch at fault goes back too.

    Raises UsageError where an argument cannot be held, SettingsMismatch where the run has other
    data; iterating raises what DataTasks raises.
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
        **dataloader_options: Any,
    ) -> None:
        options = _held_options(dataloader_options)
        _check_batch_size(batch_size)
        order = Order(
            _length(dataset), batch_size, shuffle=bool(shuffle), drop_last=drop_last, seed=seed
        )
        _check_batches(order)
        self._leased = Leased(tasks, order, workers_hint)
        self._delivered: list[Keyed] = []
        self._next_epoch = 0
        super().__init__(
            SeededDataset(dataset),
            batch_sampler=self._leased,
            generator=torch.Generator().manual_seed(mix(seed)),
            **options,
        )
        # torch forgets both when it is given a batch sampler, and then forbids assignment.
        vars(self).update(batch_size=batch_size, drop_last=drop_last)
        tasks.declare(order.settings(), order.batches)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch, counted from 0; those after it count on."""
        if epoch < 0:
            raise UsageError(f"epoch {epoch} is below 0", todo="Count epochs from 0")
        self._next_epoch = epoch

    def take_delivered(self) -> tuple[tuple[BatchKey, ...], int]:
        """The keys of the batches handed out since the last call, and their samples."""
        batches, self._delivered = self._delivered, []
        return tuple(batch.key for batch in batches), sum(map(len, batches))

    def give_back(self) -> None:
        """End the iteration under way; batches read ahead, but not handed out, go back."""
        self._leased.give_back()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        under_way = self._leased.begin(self._next_epoch)
        self._next_epoch += 1
        if under_way is None:
            # A joiner passes over many finished epochs: start no processes for them.
            return iter(())
        return self._deliver(under_way, super().__iter__())

    def _deliver(self, under_way: Pass, batches: Iterator[Any]) -> Iterator[Any]:
        """Pairs batches with keys by order alone: torch keeps it, as in_order is True."""
        while (batch := self._read(under_way, batches)) is not END:
            self._delivered.append(under_way.drawn.popleft())
            yield batch

    def _read(self, under_way: Pass, batches: Iterator[Any]) -> Any:
        self._leased.expect(under_way)
        # Without processes of its own it seeds the generators of this one, collate_fn included.
        with nullcontext() if self.num_workers else kept_generators():
            return next(batches, END)


def _held_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that torch gets. Raises UsageError for those that a lease cannot hold."""
    held = dict(options)
    _check_samplers(held.pop("sampler", None), held.pop("batch_sampler", None))
    if held.pop("generator", None) is not None:
        raise UsageError(
            "generator= cannot set the order: all workers take it from the run's seed",
            todo="Leave generator out, and give the run another seed",
        )
    if not held.get("in_order", True):
        raise UsageError(
            "in_order=False would mix up which batch was trained",
            todo="Leave in_order out",
        )
    return held


def _check_samplers(sampler: Any, batch_sampler: Any) -> None:
    inner = batch_sampler.sampler if isinstance(batch_sampler, BatchSampler) else sampler
    if isinstance(inner, DistributedSampler):
        raise UsageError(
            f"{type(inner).__name__} would split the data a second time: the run leases each "
            "batch to one worker",
            todo="Leave it out; give shuffle=True for a new order each epoch",
        )
    for name, given in (("sampler", sampler), ("batch_sampler", batch_sampler)):
        if given is not None:
            raise UsageError(
                f"{name}={type(given).__name__} is not yet supported",
                todo="Give batch_size, shuffle and drop_last instead",
            )


def _length(dataset: Any) -> int:
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise UsageError(
            f"{name} is an IterableDataset, which is not yet supported",
            todo="Give a map-style data set: one with __len__ and __getitem__",
        )
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UsageError(
            f"{name} lacks __len__ or __getitem__",
            todo="Give a map-style data set: one with both",
        )
    if not (samples := len(dataset)):
        raise UsageError(
            f"the data set {name} is empty", todo="Look at the path and the filters it is read with"
        )
    return samples


def _check_batch_size(batch_size: Any) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(
            f"batch_size={batch_size!r} is not a positive int",
            todo="Give the number of samples a worker takes at a time, such as 64",
        )


def _check_batches(order: Order) -> None:
    if not order.batches:
        raise UsageError(
            f"drop_last=True leaves no batch: {order.samples} samples, batch_size "
            f"{order.batch_size}",
            todo="Leave drop_last out, or give a smaller batch_size",
        )
