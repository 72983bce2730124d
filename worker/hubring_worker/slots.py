"""Where a segment's tensors lie in memory: mappings, and tensors placed in them.

What happens to gradients is in `hooks`, to the whole model in `flat`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch

from hubring_common.carrier.base import Extent
from hubring_common.layout import ALIGN, Layout, ParamSpec, Segment, Slice


@dataclass(frozen=True, slots=True)
class Memory:
    """`elements` of one dtype in a page-aligned mapping of its own, zero at first."""

    mapping: mmap
    flat: torch.Tensor

    @classmethod
    def of(cls, elements: int, dtype: torch.dtype) -> "Memory":
        # Private: a forked child (a DataLoader's worker) that writes to the model must not
        # write to its parent's. Not empty: mmap and frombuffer refuse that.
        nbytes = max(elements, ALIGN) * dtype.itemsize
        mapping = mmap(-1, nbytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        return cls(mapping, torch.frombuffer(mapping, dtype=dtype))

    def place(self, start: int, spec: ParamSpec) -> torch.Tensor:
        """A tensor of `spec`'s shape and strides at element `start`.

        It has a Storage and a version counter of its own, where a slice of `flat` would share
        both: torch.save would then write the whole segment for every layer, and safetensors
        would refuse the model.
        """
        dtype = self.flat.dtype
        if spec.numel == 0:
            return torch.empty_strided(spec.shape, spec.stride, dtype=dtype)
        offset = start * dtype.itemsize
        part = torch.frombuffer(self.mapping, dtype=dtype, offset=offset, count=spec.numel)
        empty = torch.empty(0, dtype=dtype)
        return empty.set_(part.untyped_storage(), 0, spec.shape, spec.stride)

    def bytes_of(self, piece: Slice) -> memoryview:
        item = self.flat.itemsize
        return memoryview(self.mapping)[piece.start * item : piece.stop * item]


@dataclass(frozen=True, slots=True)
class SegmentMemory:
    """One segment's memory. `weights` is `wire` itself where the parameters are master dtype.

    wire: master weights, as the hub sends them. grads: in master dtype, as it gets them.
    weights: what the parameters are views of.
    """

    wire: Memory
    grads: Memory
    weights: Memory

    @classmethod
    def of(cls, segment: Segment) -> "SegmentMemory":
        master, own = torch_dtype(segment.master), torch_dtype(segment.dtype)
        wire = Memory.of(segment.elements, master)
        grads = Memory.of(segment.elements, master)
        weights = wire if own is master else Memory.of(segment.elements, own)
        return cls(wire, grads, weights)

    def weights_to_wire(self) -> None:
        if self.weights is not self.wire:
            self.wire.flat.copy_(self.weights.flat)

    def wire_to_weights(self) -> None:
        if self.weights is not self.wire:
            self.weights.flat.copy_(self.wire.flat)


def torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def extents(layout: Layout, memories: Sequence[Memory]) -> dict[Slice, Extent]:
    """Each slice's bytes, straight over the mappings; `memories[i]` is segment i's."""
    return {s: Extent(s.offset_bytes, memories[s.segment].bytes_of(s)) for s in layout.slices}
