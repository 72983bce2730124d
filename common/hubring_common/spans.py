"""torch's elementwise optimizers on the flat blocks of one shard.

A span is a range of a block that torch steps as one 1-D tensor. A block starts as few spans;
a push that lacks some parameters splits them at the edges of those for good, since a span has
one step count. How weights and gradients come here, and when, is the shard's business.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from hubring_common.errors import ModelMismatch, UsageError
from hubring_common.layout import ALIGN, ITEM_BYTES, Block
from hubring_common.messages import Hypers
from hubring_common.optimizers import FUSED, NEEDED_SLOTS, build, check_hypers

SPAN_BYTES = 1 << 20
"""Implementations that are not fused make a pass over memory for each operation: a span of
this size stays in the cache between them (8 ms instead of 28 for NAdam on 24 MB). Measured:
0.25 and 4 MiB are slower. A fused one makes a single pass, so its spans are whole blocks."""


@dataclass(frozen=True, slots=True)
class SpanState:
    """What torch keeps of [start, stop) of a block: its scalars, and which vectors it has."""

    start: int
    stop: int
    scalars: Mapping[str, float]
    vectors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BlockState:
    """`vectors`: slot name -> 1-D tensor as long as the block, zero where a span has none."""

    spans: tuple[SpanState, ...]
    vectors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class OptimizerState:
    kind: str
    blocks: tuple[BlockState, ...]


class SpanOptimizer:
    """Steps one shard. For one thread at a time; the caller sets torch's number of threads.

    `weights[i]` is the 1-D master tensor of `blocks[i]`, stepped in place. Fused where torch
    has that on a CPU, else one tensor at a time: every span starts and ends at a multiple of
    16 elements, so the bits do not depend on how many shards the model is cut into.
    Raises UsageError for a kind that is not in `optimizers.ELEMENTWISE`.
    """

    def __init__(self, kind: str, blocks: Sequence[Block], weights: Sequence[torch.Tensor]) -> None:
        self._kind = kind
        pairs = zip(blocks, weights, strict=True)
        self._blocks = tuple(_BlockOptimizer(kind, block, flat) for block, flat in pairs)

    def step(
        self, grads: Sequence[torch.Tensor], present: frozenset[int], groups: Sequence[Hypers]
    ) -> None:
        """Step the parameters in `present`; the others keep their weights and their slots.

        `grads[i]` is flat like `weights[i]`; it is read in place, and no reference to it stays.
        What it holds for absent parameters is ignored. `groups` has the hypers of every param
        group. Raises UsageError, before anything is stepped, where `check` does.
        """
        self.check(groups)
        for block, grad in zip(self._blocks, grads, strict=True):
            block.step(grad, present, groups)

    def check(self, groups: Sequence[Hypers]) -> None:
        """Raises UsageError where `groups` lacks numbers of this kind, has others, or switches on
        what needs a slot that torch makes at the first step only, such as Adam's amsgrad.
        """
        for block in self._blocks:
            block.check(groups)

    def state_bytes(self) -> int:
        """The bytes of all slots: grows at a parameter's first gradient."""
        return sum(block.state_bytes() for block in self._blocks)

    def snapshot(self) -> OptimizerState:
        """A copy of all slots and of where the spans lie; the weights are not in it."""
        return OptimizerState(self._kind, tuple(block.snapshot() for block in self._blocks))

    def restore(self, state: OptimizerState) -> None:
        """Continue, bit for bit, where `state` was taken; its tensors are copied.

        Raises ModelMismatch, and changes nothing, where it is of another optimizer or layout.
        """
        ours = self._kind, [block.elements for block in self._blocks]
        theirs = state.kind, [_tiled_elements(block) for block in state.blocks]
        if ours != theirs:
            fact = f"the slots are of {_shown(*theirs)}, but this shard is {_shown(*ours)}"
            todo = "Restore with the model, optimizer and servers of the checkpoint"
            raise ModelMismatch(fact, todo=todo)
        for block, block_state in zip(self._blocks, state.blocks, strict=True):
            block.restore(block_state)


@dataclass(frozen=True, slots=True, eq=False)
class _Span:
    """[start, stop) of a block. torch keys the slots by `weights`, which is 1-D: that tells a
    slot of elements from a scalar, which is 0-D.
    """

    start: int
    stop: int
    weights: torch.Tensor


class _BlockOptimizer:
    def __init__(self, kind: str, block: Block, weights: torch.Tensor) -> None:
        self._block, self._weights = block, weights
        self._params = frozenset(part.param for part in block.parts)
        self._starts = [part.start for part in block.parts]
        self._needed_slots = NEEDED_SLOTS.get(kind, {})
        # A torch optimizer for each block, since a block has one param group.
        self._torch = build(kind)
        size = block.elements if kind in FUSED else SPAN_BYTES // ITEM_BYTES[block.master]
        cuts = range(size, block.elements, size)
        self._spans = self._tile([*cuts, block.elements])

    @property
    def elements(self) -> int:
        return self._block.elements

    def check(self, groups: Sequence[Hypers]) -> None:
        if self._block.group >= len(groups):
            fact = f"the worker sent hypers of {len(groups)} param groups"
            raise UsageError(f"{fact}, but the model has group {self._block.group}")
        hypers = groups[self._block.group]
        check_hypers(self._torch, hypers)
        for name, slot in self._needed_slots.items():
            if hypers[name] and any(slot not in state for state in self._torch.state.values()):
                fact = f"{name} was switched on after the first step of {self._kind}"
                raise UsageError(f"{fact}, which then has no {slot}", todo="Set it from the start")

    def step(self, grad: torch.Tensor, present: frozenset[int], groups: Sequence[Hypers]) -> None:
        self._set(groups[self._block.group])
        active = self._present_spans(present)
        # torch's fused SGD raises TypeError when some momentum buffers exist and others don't
        # (a late first gradient); stepping the new spans apart changes no bit.
        new = [span for span in active if not self._torch.state.get(span.weights)]
        old = [span for span in active if self._torch.state.get(span.weights)]
        for spans in filter(None, (new, old)):
            self._step_spans(spans, grad)

    def state_bytes(self) -> int:
        slots = (slot for state in self._torch.state.values() for slot in state.values())
        return sum(slot.nbytes for slot in slots)

    def snapshot(self) -> BlockState:
        vectors: dict[str, torch.Tensor] = {}
        spans = tuple(self._save(span, vectors) for span in self._spans)
        return BlockState(spans, vectors)

    def restore(self, state: BlockState) -> None:
        self._spans = self._tile([span.stop for span in state.spans])
        self._torch.state.clear()
        vectors = {name: vector.clone() for name, vector in state.vectors.items()}
        for span, saved in zip(self._spans, state.spans, strict=True):
            slots = {name: vectors[name][span.start : span.stop] for name in saved.vectors}
            scalars = {name: self._scalar(value) for name, value in saved.scalars.items()}
            if slots or scalars:
                self._torch.state[span.weights] = {**scalars, **slots}

    @property
    def _kind(self) -> str:
        return type(self._torch).__name__

    def _span(self, start: int, stop: int) -> _Span:
        return _Span(start, stop, self._weights[start:stop])

    def _tile(self, stops: Sequence[int]) -> list[_Span]:
        return [self._span(start, stop) for start, stop in pairwise([0, *stops])]

    def _set(self, hypers: Hypers) -> None:
        self._torch.param_groups[0].update(hypers)
        # Adagrad takes initial_accumulator_value from here for slots that it makes late.
        self._torch.defaults.update(hypers)

    def _step_spans(self, spans: Sequence[_Span], grad: torch.Tensor) -> None:
        self._torch.param_groups[0]["params"] = [span.weights for span in spans]
        for span in spans:
            span.weights.grad = grad[span.start : span.stop]
        self._torch.step()
        for span in spans:
            span.weights.grad = None

    def _present_spans(self, present: frozenset[int]) -> list[_Span]:
        absent = self._params - present
        if not absent:
            return self._spans
        if len(absent) == len(self._params):
            return []
        self._split(self._edges(absent))
        return [span for span in self._spans if self._param_at(span.start) not in absent]

    def _param_at(self, element: int) -> int:
        return self._block.parts[bisect_right(self._starts, element) - 1].param

    def _edges(self, absent: frozenset[int]) -> list[int]:
        """Where a present parameter meets an absent one."""
        neighbours = pairwise(self._block.parts)
        return [b.start for a, b in neighbours if (a.param in absent) != (b.param in absent)]

    def _split(self, edges: Sequence[int]) -> None:
        self._spans = [piece for span in self._spans for piece in self._pieces(span, edges)]

    def _pieces(self, span: _Span, edges: Sequence[int]) -> list[_Span]:
        """`span`, cut where an edge lies inside it; the pieces inherit its slots."""
        inside = edges[bisect_right(edges, span.start) : bisect_left(edges, span.stop)]
        if not inside:
            return [span]
        bounds = pairwise([span.start, *inside, span.stop])
        pieces = [self._span(start, stop) for start, stop in bounds]
        if slots := self._torch.state.pop(span.weights, None):
            for piece in pieces:
                a, b = piece.start - span.start, piece.stop - span.start
                self._torch.state[piece.weights] = {
                    name: slot[a:b] if slot.dim() else slot.clone() for name, slot in slots.items()
                }
        return pieces

    def _save(self, span: _Span, vectors: dict[str, torch.Tensor]) -> SpanState:
        """The span's own part of a snapshot; its slots are copied into `vectors`."""
        slots = self._torch.state.get(span.weights, {})
        own = {name: slot for name, slot in slots.items() if slot.dim()}
        for name, slot in own.items():
            if name not in vectors:
                vectors[name] = torch.zeros_like(self._weights)
            vectors[name][span.start : span.stop] = slot
        scalars = {name: slot.item() for name, slot in slots.items() if not slot.dim()}
        return SpanState(span.start, span.stop, scalars, tuple(own))

    def _scalar(self, value: float) -> torch.Tensor:
        # As torch makes them: float32 where fused, else the default dtype.
        return torch.tensor(value, dtype=torch.float32 if self._kind in FUSED else None)


def _tiled_elements(state: BlockState) -> int:
    """The elements that the spans and vectors of `state` agree on; -1 where they don't."""
    at = 0
    for span in state.spans:
        if span.start != at or span.stop <= at or span.stop % ALIGN:
            return -1
        at = span.stop
    return at if all(vector.shape == (at,) for vector in state.vectors.values()) else -1


def _shown(kind: str, elements: Sequence[int]) -> str:
    return f"{kind} on blocks of {list(elements)} elements"
