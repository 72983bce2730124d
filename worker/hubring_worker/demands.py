"""What a loader was asked for, and what of it is refused before anything is read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset

from hubring_common.errors import UsageError


@dataclass(frozen=True, slots=True)
class Demand:
    """The options that say what a batch is, as the user gave them."""

    batch_size: Any
    shuffle: bool
    drop_last: bool
    sampler: Any = None
    batch_sampler: Any = None
    shards: Any = None
    even: bool = False

    def check(self, dataset: Any) -> None:
        """Raises UsageError where this cannot be leased."""
        _check_samplers(self)
        if self.batch_sampler is None:
            check_batch_size(self.batch_size)
        if self.shards is None:
            _check_map_style(dataset)
        else:
            _check_make(dataset)
            _check_stream(self)


def held_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that torch gets. Raises UsageError for those that a lease cannot hold."""
    held = dict(options)
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


def list_of_shards(shards: Any) -> list[Any]:
    """Raises UsageError for what has no order that all workers share, or is empty."""
    kind = type(shards).__name__
    if isinstance(shards, str | bytes | Mapping | set | frozenset) or not isinstance(
        shards, Iterable
    ):
        raise UsageError(
            f"shards={kind} is not a list of shards",
            todo="Give them in the same order on every worker, as in sorted(glob('*.tar'))",
        )
    if not (listed := list(shards)):
        raise UsageError("shards is empty", todo="Look at the path that they are listed from")
    return listed


def _check_samplers(demand: Demand) -> None:
    given = demand.batch_sampler if demand.batch_sampler is not None else demand.sampler
    inner = given.sampler if isinstance(given, BatchSampler) else given
    if isinstance(inner, DistributedSampler):
        raise UsageError(
            f"{type(inner).__name__} would split the data a second time: the run leases each "
            "batch to one worker",
            todo="Leave it out; give shuffle=True for a new order each epoch",
        )
    if demand.sampler is not None and demand.shuffle:
        raise UsageError(
            "sampler= and shuffle=True both set the order", todo="Leave one of the two out"
        )
    decided = (demand.batch_size, demand.shuffle, demand.drop_last) != (1, False, False)
    if demand.batch_sampler is not None and (decided or demand.sampler is not None):
        raise UsageError(
            "batch_sampler= says already what a batch is",
            todo="Leave out batch_size, shuffle, drop_last and sampler",
        )


def _check_map_style(dataset: Any) -> None:
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise UsageError(
            f"{name} is an IterableDataset; a stream is leased in shards, and none are named",
            todo="Give run.loader(make, shards=[...]), where make(shard) gives a shard's samples",
        )
    check_indexed(dataset)


def check_indexed(dataset: Any) -> None:
    """Raises UsageError where samples cannot be counted or picked, or there are none."""
    name = type(dataset).__name__
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UsageError(
            f"{name} lacks __len__ or __getitem__",
            todo="Give a map-style data set: one with both",
        )
    if not len(dataset):
        raise UsageError(
            f"the data set {name} is empty", todo="Look at the path and the filters it is read with"
        )


def _check_make(make: Any) -> None:
    if not callable(make):
        raise UsageError(
            f"with shards=, {type(make).__name__} must be called with a shard, and cannot be",
            todo="Give a function make(shard) of samples, or a data set with __call__(self, shard)",
        )


def _check_stream(demand: Demand) -> None:
    if demand.sampler is not None or demand.batch_sampler is not None:
        raise UsageError(
            "a sampler picks samples by their index, and those of shards have none",
            todo="Leave it out; pick inside make(shard)",
        )
    if demand.even:
        raise UsageError(
            "even=True needs to know how many batches an epoch has, and shards do not say",
            todo="Leave it out, and give your framework a number of steps",
        )


def check_batch_size(batch_size: Any) -> None:
    """Raises UsageError where it is no positive int."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(
            f"batch_size={batch_size!r} is not a positive int",
            todo="Give the number of samples a worker takes at a time, such as 64",
        )
