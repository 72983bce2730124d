"""Where each parameter lies: a pure function of the model's spec and the number of shards.

model -> segments (one param group and dtype, laid flat) -> slices (at most 4 MiB) -> shards.
Counts are elements unless a name says bytes. Imports no torch, so that the coordinator can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod
from typing import TypeAlias

import xxhash

ALIGN = 16
"""Slots start at multiples of 16 elements: fused optimizers then give the same bits however a
segment is cut (their vector loops have no scalar tail)."""
SLICE_BYTES = 4 << 20
SMALLEST_SLICE_BYTES = 4 << 10

MASTER = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
"""A parameter's dtype -> the dtype of its weights and gradients on the hub and on the wire."""
ITEM_BYTES = {"float32": 4, "float64": 8}


def padded(elements: int) -> int:
    return -(-elements // ALIGN) * ALIGN


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One parameter. `stride` in elements, as torch gives it; `group` is its param group."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    group: int

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class StillSpec:
    """A tensor that no optimizer steps: a frozen parameter, or a buffer. `dtype` is torch's name,
    any of them; `nbytes` of its elements, row by row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class ModelSpec:
    """The parameters that an optimizer steps, in the order of its param groups, and the rest of
    the model: its still tensors, in the order of their bytes.
    """

    params: tuple[ParamSpec, ...]
    optimizer: str
    still: tuple[StillSpec, ...] = ()

    @cached_property
    def digest(self) -> int:
        rest = (self.still,) if self.still else ()
        return xxhash.xxh3_64_intdigest(repr((self.params, self.optimizer, *rest)).encode())

    @property
    def still_bytes(self) -> int:
        return sum(s.nbytes for s in self.still)

    def difference(self, other: "ModelSpec") -> str:
        """The first way in which `self` (here) is not `other` (the cluster), or ""."""
        if found := _first_difference(self.params, other.params, "parameter"):
            return found
        if self.optimizer != other.optimizer:
            return f"the optimizer is {self.optimizer} here but {other.optimizer} on the cluster"
        return _first_difference(self.still, other.still, "frozen parameter or buffer")


Spec: TypeAlias = ParamSpec | StillSpec


def _first_difference(here: Sequence[Spec], there: Sequence[Spec], kind: str) -> str:
    for ours, theirs in zip(here, there, strict=False):
        if ours != theirs:
            return _field_difference(ours, theirs, kind)
    return _length_difference(here, there, kind) if len(here) != len(there) else ""


def _field_difference(here: Spec, there: Spec, kind: str) -> str:
    if here.name != there.name:
        return f"the {kind} is {here.name} here but {there.name} on the cluster"
    for field in ("shape", "dtype", "stride", "group", "nbytes"):
        ours, theirs = getattr(here, field, ()), getattr(there, field, ())
        if ours != theirs:
            is_shape = field == "shape"
            what = here.name if is_shape else f"{here.name}'s {field}"
            shown = list if field in {"shape", "stride"} else str
            return f"{what} is {shown(ours)} here but {shown(theirs)} on the cluster"
    raise AssertionError((here, there))


def _length_difference(here: Sequence[Spec], there: Sequence[Spec], kind: str) -> str:
    longer, where = (
        (here, "only here") if len(here) > len(there) else (there, "only on the cluster")
    )
    name = longer[min(len(here), len(there))].name
    kinds = " or ".join(f"{word}s" for word in kind.split(" or "))
    return f"{name} is {where} ({len(here)} {kinds} here, {len(there)} on the cluster)"


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter's place in its segment, [start, stop), padding included."""

    param: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Segment:
    """The parameters of one group and dtype, laid flat. `master` is their dtype on the hub."""

    group: int
    dtype: str
    master: str
    slots: tuple[Slot, ...]

    @property
    def elements(self) -> int:
        return self.slots[-1].stop if self.slots else 0


@dataclass(frozen=True, slots=True)
class Slice:
    """[start, stop) of a segment, and the byte of its shard where it lies."""

    segment: int
    start: int
    stop: int
    shard: int
    offset_bytes: int
    params: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a parameter that a block holds, [start, stop) of the block."""

    param: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Block:
    """What one shard holds of one segment: contiguous from byte `offset_bytes` of the shard."""

    group: int
    master: str
    offset_bytes: int
    elements: int
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        return self.elements * ITEM_BYTES[self.master]


@dataclass(frozen=True)
class Layout:
    """The whole plan. Build it with `plan`."""

    spec: ModelSpec
    shards: int
    segments: tuple[Segment, ...]
    slices: tuple[Slice, ...]

    def of_shard(self, shard: int) -> tuple[Slice, ...]:
        """The shard's slices in the order of their bytes."""
        return self._by_shard[shard]

    @cached_property
    def _by_shard(self) -> tuple[tuple[Slice, ...], ...]:
        def mine(shard: int) -> tuple[Slice, ...]:
            own = (s for s in self.slices if s.shard == shard)
            return tuple(sorted(own, key=lambda s: s.offset_bytes))

        return tuple(mine(shard) for shard in range(self.shards))

    def slice_bytes(self, piece: Slice) -> int:
        return (piece.stop - piece.start) * ITEM_BYTES[self.segments[piece.segment].master]

    def shard_bytes(self, shard: int) -> int:
        return sum(map(self.slice_bytes, self.of_shard(shard)))

    def still_range(self, shard: int) -> tuple[int, int]:
        """The bytes [start, stop) of the still tensors, laid end to end, that the shard keeps."""
        total = self.spec.still_bytes
        return total * shard // self.shards, total * (shard + 1) // self.shards

    def touched(self, shard: int, present: frozenset[int]) -> tuple[Slice, ...]:
        """The slices that hold something of a present parameter: the ones a push carries."""
        return tuple(s for s in self.of_shard(shard) if not present.isdisjoint(s.params))

    def blocks(self, shard: int) -> tuple[Block, ...]:
        """The shard as runs of one segment each."""
        runs = groupby(self.of_shard(shard), key=lambda s: s.segment)
        return tuple(self._block(segment, tuple(run)) for segment, run in runs)

    def _block(self, segment: int, run: tuple[Slice, ...]) -> Block:
        home = self.segments[segment]
        parts: list[Part] = []
        at = 0
        for piece in run:
            parts += _parts(home, piece, at)
            at += piece.stop - piece.start
        return Block(home.group, home.master, run[0].offset_bytes, at, tuple(parts))


def _parts(home: Segment, piece: Slice, at: int) -> Iterator[Part]:
    """The parts of one slice that lies at element `at` of its block."""
    shift = at - piece.start
    for slot in home.slots:
        start, stop = max(slot.start, piece.start), min(slot.stop, piece.stop)
        if start < stop:
            yield Part(slot.param, start + shift, stop + shift)


def plan(spec: ModelSpec, shards: int, slice_bytes: int | None = None) -> Layout:
    """Lay `spec` out over `shards` shards; the same on every machine.

    A smaller `slice_bytes` than the default is for tests; every value gives a valid layout.
    """
    if shards < 1:
        raise ValueError(f"a run has at least one shard, not {shards}")
    segments = tuple(_segments(spec))
    limit = slice_bytes or _fitting_slice_bytes(segments, shards)
    return Layout(spec, shards, segments, _deal(segments, shards, limit))


def _segments(spec: ModelSpec) -> Iterator[Segment]:
    kinds = dict.fromkeys((p.group, p.dtype) for p in spec.params)
    for group, dtype in sorted(kinds):
        slots: list[Slot] = []
        at = 0
        for index, param in enumerate(spec.params):
            if (param.group, param.dtype) == (group, dtype):
                slots.append(Slot(index, at, at + padded(param.numel)))
                at = slots[-1].stop
        yield Segment(group, dtype, MASTER[dtype], tuple(slots))


def _fitting_slice_bytes(segments: Sequence[Segment], shards: int) -> int:
    """4 MiB, less where a small model would otherwise leave shards empty."""
    total = sum(s.elements * ITEM_BYTES[s.master] for s in segments)
    return min(SLICE_BYTES, max(SMALLEST_SLICE_BYTES, total // (4 * shards)))


def _cuts(segment: Segment, limit: int) -> Iterator[tuple[int, int]]:
    """The slices of a segment: whole slots share one while they fit; a larger slot is cut."""
    start = stop = 0
    for slot in segment.slots:
        if slot.stop - start > limit and stop > start:
            yield start, stop
            start = stop
        while slot.stop - start > limit:
            yield start, start + limit
            start += limit
        stop = slot.stop
        if slot.stop - slot.start > limit and stop > start:
            yield start, stop
            start = stop
    if stop > start:
        yield start, stop


def _deal(segments: Sequence[Segment], shards: int, limit_bytes: int) -> tuple[Slice, ...]:
    """Largest first, each to the shard that holds least; then lay each shard out in order."""
    cut: list[tuple[int, int, int, int]] = []  # (bytes, segment, start, stop)
    for index, segment in enumerate(segments):
        item = ITEM_BYTES[segment.master]
        limit = max(ALIGN, limit_bytes // item // ALIGN * ALIGN)
        cut += [((b - a) * item, index, a, b) for a, b in _cuts(segment, limit)]
    load = [0] * shards
    hands: list[list[tuple[int, int, int, int]]] = [[] for _ in range(shards)]
    for piece in sorted(cut, key=lambda c: (-c[0], *c[1:])):
        shard = load.index(min(load))
        load[shard] += piece[0]
        hands[shard].append(piece)
    return tuple(s for shard, hand in enumerate(hands) for s in _lay(segments, shard, hand))


def _lay(
    segments: Sequence[Segment], shard: int, hand: list[tuple[int, int, int, int]]
) -> Iterator[Slice]:
    offset = 0
    # Wider dtypes first keep every block aligned to its items.
    widest_first = sorted(hand, key=lambda c: (-ITEM_BYTES[segments[c[1]].master], *c[1:]))
    for nbytes, segment, start, stop in widest_first:
        held = (
            slot.param
            for slot in segments[segment].slots
            if max(slot.start, start) < min(slot.stop, stop)  # an empty parameter is held nowhere
        )
        yield Slice(segment, start, stop, shard, offset, tuple(held))
        offset += nbytes
