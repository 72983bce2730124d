"""A hub in this process: torch's own optimizer on a master copy of every parameter.

It shares nothing with the worker but the bytes of the extents, and finds parameters in them by
the layout's slices and slots alone.
"""

import torch

from hubring_common.layout import plan
from hubring_common.messages import Hypers
from hubring_common.optimizers import ELEMENTWISE
from hubring_worker.adopt import adopt
from hubring_worker.contracts import Step
from hubring_worker.flat import FlatModel
from hubring_worker.optimizer import wrap

FEW_BYTES = 4096
"""A slice of 1,024 elements, so that small models have several, dealt over all shards."""


class LocalHub:
    def __init__(self, flat: FlatModel) -> None:
        self.flat, self.layout = flat, flat.layout
        self.steps: list[Step] = []
        self.masters: list[torch.nn.Parameter] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def seed(self) -> None:
        """Version 0 is what the worker has."""
        self.flat.check()
        self.masters = [torch.nn.Parameter(t) for t in weights(self.flat)]
        self.flat.landed()

    def step(self, step: Step) -> None:
        if not self.masters:
            self.seed()
        self.steps.append(step)
        if step.present:
            grads = gradients(self.flat, step.present)
            for master, grad in zip(self.masters, grads, strict=True):
                master.grad = grad
            self._optimizer(step.hypers).step()
        write(self.flat, [m.detach() for m in self.masters])

    def _optimizer(self, hypers: tuple[Hypers, ...]) -> torch.optim.Optimizer:
        """Made at the first step; torch computes with each step's numbers."""
        if self.optimizer is None:
            pairs = list(zip(self.masters, self.layout.spec.params, strict=True))
            groups = [
                {"params": [m for m, spec in pairs if spec.group == g]} for g in range(len(hypers))
            ]
            # Adagrad takes this one for the whole optimizer only.
            whole = {k: v for k, v in hypers[0].items() if k == "initial_accumulator_value"}
            self.optimizer = ELEMENTWISE[self.layout.spec.optimizer](groups, **whole)
        for group, numbers in zip(self.optimizer.param_groups, hypers, strict=True):
            group.update(numbers)
        return self.optimizer


def hubbed(model, optimizer, shards=3):
    """What run.optimizer does, with a LocalHub: (wrapped, hub)."""
    adopted = adopt(model, optimizer)
    layout = plan(adopted.spec, shards, slice_bytes=FEW_BYTES)
    flat = FlatModel(layout, model, adopted.params)
    hub = LocalHub(flat)
    return wrap(optimizer, flat, hub), hub


def weights(flat):
    """The master weights as a push of version 0 would send them."""
    shards = range(flat.layout.shards)
    return _tensors(flat.layout, _read(flat.layout, {s: flat.weight_extents(s) for s in shards}))


def gradients(flat, present):
    """What a push sends: a tensor for each present parameter, None for the others."""
    shards = range(flat.layout.shards)
    read = _read(flat.layout, {s: flat.grad_extents(s, present) for s in shards})
    return [t if i in present else None for i, t in enumerate(_tensors(flat.layout, read))]


def write(flat, values):
    """What a pull does: every byte of every extent."""
    flats = _zeros(flat.layout)
    for view, value in zip(_tensors(flat.layout, flats), values, strict=True):
        view.copy_(value)
    for shard in range(flat.layout.shards):
        pieces = flat.layout.of_shard(shard)
        for piece, (offset, data) in zip(pieces, flat.weight_extents(shard), strict=True):
            assert offset == piece.offset_bytes
            part = flats[piece.segment][piece.start : piece.stop]
            data[:] = memoryview(part.numpy()).cast("B")


def _read(layout, extents):
    """The segments, flat, as the extents of all shards give them; zero where none does."""
    flats = _zeros(layout)
    for shard, pieces in extents.items():
        at = {s.offset_bytes: s for s in layout.of_shard(shard)}
        assert [offset for offset, _ in pieces] == sorted(offset for offset, _ in pieces)
        for offset, data in pieces:
            piece = at[offset]
            assert (data.nbytes, data.format, data.ndim) == (layout.slice_bytes(piece), "B", 1)
            part = torch.frombuffer(bytearray(data), dtype=flats[piece.segment].dtype)
            flats[piece.segment][piece.start : piece.stop] = part
    return flats


def _zeros(layout):
    return [torch.zeros(s.elements, dtype=getattr(torch, s.master)) for s in layout.segments]


def _tensors(layout, flats):
    """Views of the segments, one a parameter, with its shape and strides."""
    slots = {
        slot.param: (index, slot.start)
        for index, segment in enumerate(layout.segments)
        for slot in segment.slots
    }
    homes = [slots[index] for index in range(len(slots))]
    return [
        flats[segment].as_strided(spec.shape, spec.stride, start)
        for spec, (segment, start) in zip(layout.spec.params, homes, strict=True)
    ]
