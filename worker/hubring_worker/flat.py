"""The model as flat segments: gradients in one mapping each, weights in another.

A parameter and its gradient are views of these, so a push sends and a pull fills what the
model computes with. How bytes travel, and when, is the hub's business; the optimizer's
wrapper calls in here once a step.
"""

from collections.abc import Sequence
from functools import partial
from math import isfinite

import torch
from torch import nn

from hubring_common.carrier.base import Extent
from hubring_common.layout import Layout
from hubring_worker.hooks import Grads
from hubring_worker.slots import SegmentMemory, extents
from hubring_worker.weights import Weights


class FlatModel:
    """Moves `params` of `model` into flat memory; `params[i]` is `layout.spec.params[i]`.

    They stay the same objects, and keep values, strides and gradients. For one thread.

    Until the first `landed()` the run has no version of its weights, and what the user writes
    into the model is what it begins with; afterwards only a version that lands may change a
    weight. Whoever seeds or pulls the first one calls `check()` before and `landed()` after.
    """

    def __init__(self, layout: Layout, model: nn.Module, params: Sequence[nn.Parameter]) -> None:
        self._layout, specs = layout, layout.spec.params
        self._memory = tuple(map(SegmentMemory.of, layout.segments))
        self._grad_bytes = extents(layout, [m.grads for m in self._memory])
        self._wire_bytes = extents(layout, [m.wire for m in self._memory])
        homes = {
            slot.param: (memory, slot.start)
            for segment, memory in zip(layout.segments, self._memory, strict=True)
            for slot in segment.slots
        }
        at = [(*homes[index], spec) for index, spec in enumerate(specs)]
        places = [partial(memory.weights.place, start, spec) for memory, start, spec in at]
        self._weights = Weights(specs, model, params, places)
        slots = [partial(memory.grads.place, start, spec) for memory, start, spec in at]
        self._grads = Grads(specs, params, slots)
        self._weights_to_wire()

    @property
    def layout(self) -> Layout:
        return self._layout

    def grad_extents(self, shard: int, present: frozenset[int]) -> list[Extent]:
        """The shard's slices that hold something of a `present` parameter, over the gradients."""
        return [self._grad_bytes[s] for s in self._layout.touched(shard, present)]

    def weight_extents(self, shard: int) -> list[Extent]:
        """All slices of the shard, writable, over the master weights.

        Call `landed()` when a whole version has been written to all shards'.
        """
        return [self._wire_bytes[s] for s in self._layout.of_shard(shard)]

    def check(self) -> None:
        """Take back what moved, and before the first version what was written.

        Raises ModelMismatch by name for a parameter that was replaced, converted, reshaped, or
        changed by something else than a landed version. Writes through `.data` it can't see.
        """
        self._weights.check()
        self._grads.hook_new()
        if not self._weights.are_settled:
            self._weights_to_wire()

    def present(self) -> frozenset[int]:
        """The indices of the parameters that have a gradient, all of it in the mappings now."""
        return self._grads.collect()

    def divide_gradients(self, scale: torch.Tensor | float) -> None:
        """Undo a GradScaler's scale in every `p.grad`. Call it before `present()`."""
        self._grads.divide(scale)

    def first_nonfinite(self, present: frozenset[int]) -> str:
        """The name of the first parameter whose gradient has a NaN or Inf, or ""."""
        # One pass over memory: a NaN or Inf anywhere makes the sum one. (So may an overflow.)
        if all(isfinite(m.grads.flat.sum().item()) for m in self._memory):
            return ""
        bad = (i for i in sorted(present) if not self._grads.is_finite(i))
        return next((self._layout.spec.params[i].name for i in bad), "")

    def landed(self) -> None:
        """A whole version lies in the weight extents: let the model see it."""
        for memory in self._memory:
            memory.wire_to_weights()
        self._weights.settle()
        # Within an autocast block torch would go on using casts of the old weights.
        torch.clear_autocast_cache()

    def _weights_to_wire(self) -> None:
        for memory in self._memory:
            memory.weights_to_wire()
