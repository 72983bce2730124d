"""Which batches a loader draws: an epoch's order, and the batch sampler that leases from it.

A leased batch is undrawn, then drawn (its indices went to the DataLoader, which may read ahead),
then delivered to the user's loop. Only delivered ones count as trained; the others can be given
back. Reading samples is `seeding`'s and torch's, the user's surface is `loader`'s.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch.utils.data import Sampler

from hubring_common.errors import UsageError
from hubring_common.ids import BatchKey
from hubring_common.messages import Span, spans_of
from hubring_worker.contracts import DataTasks
from hubring_worker.seeding import Keyed, mix


class Order:
    """The order of the samples in each epoch: a pure function of seed and epoch.

    A batch is a range of it, so whoever trains a batch gets the same samples.
    """

    def __init__(
        self, samples: int, batch_size: int, *, shuffle: bool, drop_last: bool, seed: int
    ) -> None:
        self.samples, self.batch_size = samples, batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        # Two: this epoch's, and an earlier one's that lost a worker. 8 bytes a sample each.
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    @property
    def batches(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def settings(self) -> dict[str, str]:
        """What all workers must agree on, as the run's record of the data shows it."""
        names = ("batch_size", "shuffle", "drop_last", "samples", "seed")
        return {name: str(getattr(self, name)) for name in names}

    def batch(self, key: BatchKey) -> Keyed:
        first = key.batch * self.batch_size
        end = min(first + self.batch_size, self.samples)
        indices = (
            self._shuffled(key.epoch)[first:end].tolist() if self.shuffle else range(first, end)
        )
        return Keyed(indices, key, mix(self.seed, *key))

    def _shuffle(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        return torch.randperm(self.samples, generator=generator)


@dataclass(slots=True)
class Pass:
    """One iteration of the loader: what it holds and has not delivered, in order of delivery."""

    epoch: int
    drawn: deque[Keyed] = field(default_factory=deque)
    undrawn: deque[BatchKey] = field(default_factory=deque)
    is_claimed: bool = False

    def undelivered(self) -> tuple[Span, ...]:
        return spans_of([*(batch.key for batch in self.drawn), *self.undrawn])


class Leased(Sampler[Keyed]):
    """The DataLoader's batch sampler, iterated in the training process."""

    def __init__(self, tasks: DataTasks, order: Order, workers_hint: Callable[[], int]) -> None:
        self._tasks, self._order, self._workers_hint = tasks, order, workers_hint
        self._pass: Pass | None = None
        self._frozen_len: int | None = None
        # As torch's BatchSampler has them; frameworks look here.
        self.batch_size, self.drop_last = order.batch_size, order.drop_last

    def begin(self, epoch: int) -> Pass | None:
        """Lease the first task of a pass; None: no batch is left of this epoch.

        What an earlier pass holds undelivered goes back first.
        """
        self.give_back()
        self._frozen_len = self._share()
        begun = Pass(epoch)
        self._pass = begun if self._lease(begun) else None
        return self._pass

    def give_back(self) -> None:
        """End the pass that is under way and return what it has not delivered."""
        if self._pass is not None and (spans := self._pass.undelivered()):
            self._tasks.give_back(spans)
        self._pass = None

    def expect(self, under_way: Pass) -> None:
        """Raises UsageError where `under_way` was ended by `begin` or `give_back`."""
        if self._pass is not under_way:
            raise UsageError(
                "this iteration of the loader ended when another began; its batches went back",
                todo="Finish one iteration before the next, or make a second loader",
            )

    def __iter__(self) -> Iterator[Keyed]:
        under_way = self._claim()
        while under_way.undrawn or self._lease(under_way):
            batch = self._order.batch(under_way.undrawn.popleft())
            under_way.drawn.append(batch)
            yield batch

    def __len__(self) -> int:
        """A worker's share of an epoch's batches, as it was when the pass began."""
        return self._share() if self._frozen_len is None else self._frozen_len

    def _claim(self) -> Pass:
        """The pass to draw from: once, at the first draw; torch makes iterators it never uses."""
        if self._pass is None or self._pass.is_claimed:
            raise UsageError(
                "the batch sampler of a hubring loader was iterated without its loader",
                todo="Iterate the loader itself; do not build another DataLoader from its parts",
            )
        self._pass.is_claimed = True
        return self._pass

    def _lease(self, under_way: Pass) -> bool:
        span = self._tasks.take(under_way.epoch)
        if span is None:
            return False
        under_way.undrawn.extend(span.keys())
        return True

    def _share(self) -> int:
        return -(-self._order.batches // max(1, self._workers_hint()))
