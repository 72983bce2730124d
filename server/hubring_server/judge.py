"""What is wrong with a header, before any room is made for its bytes."""

from collections.abc import Sequence
from math import isfinite

from hubring_common.errors import HubringError, InvalidMessage, LeaseLost, NotYet, RunEnded
from hubring_common.layout import Layout, Slice
from hubring_common.messages import PullHeader, PushHeader, SeedHeader
from hubring_server.machine.messages import Why
from hubring_server.weights import present_of

Ranges = list[tuple[int, int]]
MOST_BATCHES = 1 << 63
"""Numbers of an epoch's batches: those of streamed data are (shard << 32) + batch."""


class Judge:
    """Holds what a correct header of this run and shard must say."""

    def __init__(self, run: str, layout: Layout, shard: int) -> None:
        self._run, self._layout, self._shard = run, layout, shard
        self.params = len(layout.spec.params)
        self.all = frozenset(range(self.params))
        self._groups = 1 + max((p.group for p in layout.spec.params), default=-1)

    def seed_ranges(self, header: SeedHeader) -> Ranges:
        """The bytes that a seed must bring. Raises InvalidMessage, RunEnded."""
        self._address(header)
        if header.still:
            start, stop = self._layout.still_range(self._shard)
            return _sized([(0, stop - start)], header.nbytes, "the still tensors")
        return self._slices(self._layout.of_shard(self._shard), header.nbytes)

    def push_ranges(self, header: PushHeader) -> Ranges:
        """The bytes that a push must bring: its touched slices."""
        self._address(header)
        self._keys(header)
        present = present_of(header.present, self.params)
        if present:
            self._hypers(header)
        return self._slices(self._layout.touched(self._shard, present), header.nbytes)

    def pull(self, header: PullHeader) -> None:
        self._address(header)

    def _address(self, header: SeedHeader | PushHeader | PullHeader) -> None:
        if header.run != self._run:
            fact = f"the run here is {self._run}, not {header.run}"
            raise RunEnded(
                fact, todo="start the worker anew; it learns the run from its coordinator"
            )
        if header.shard != self._shard:
            raise InvalidMessage(f"this is shard {self._shard}, not {header.shard}")

    def _keys(self, header: PushHeader) -> None:
        for epoch, batch in header.keys:
            if batch >= MOST_BATCHES:
                fact = f"epoch {epoch} has no batch {batch}: at most {MOST_BATCHES} make an epoch"
                raise InvalidMessage(fact)

    def _hypers(self, header: PushHeader) -> None:
        if len(header.groups) != self._groups:
            fact = f"{len(header.groups)} param groups came, the model has {self._groups}"
            raise InvalidMessage(fact)
        for group in header.groups:
            for name, value in group.values.items():
                if not all(map(isfinite, value.numbers)):
                    raise InvalidMessage(f"{name} is {list(value.numbers)}: not finite")

    def _slices(self, slices: Sequence[Slice], nbytes: int) -> Ranges:
        ranges = [(s.offset_bytes, s.offset_bytes + self._layout.slice_bytes(s)) for s in slices]
        return _sized(ranges, nbytes, "these parameters")


def _sized(ranges: Ranges, nbytes: int, whose: str) -> Ranges:
    """Raises InvalidMessage where `nbytes` is not what `ranges` hold."""
    expected = sum(stop - start for start, stop in ranges)
    if nbytes != expected:
        raise InvalidMessage(f"{nbytes} bytes are announced, {expected} belong to {whose}")
    return ranges


def refusal(why: Why, who: str) -> HubringError:
    """The error that a refusal of the machine stands for."""
    match why:
        case Why.FENCED:
            return LeaseLost(why.value, who=who, todo="the worker registers anew")
        case Why.UNSEEDED | Why.NOT_CHIEF:
            return NotYet(why.value, who=who, todo="it is sent again by itself")
        case _:
            return InvalidMessage(why.value, who=who)
