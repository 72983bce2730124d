"""A shard's weights and their optimizer: what a record does to tensors. No threads, no wire."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hubring_common import wire
from hubring_common.errors import InvalidMessage, UsageError
from hubring_common.layout import ALIGN, Block, Layout, Part
from hubring_common.messages import GroupHypers, Hypers, PushHeader
from hubring_common.spans import SpanOptimizer
from hubring_server.arena import Payload
from hubring_server.machine.messages import (
    Handle,
    MembersRecord,
    PushRecord,
    Record,
    SeedRecord,
)

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def present_of(bits: bytes, params: int) -> frozenset[int]:
    """The indices whose bit is set. Raises InvalidMessage for bits past the last parameter."""
    number = int.from_bytes(bits, "little")
    if number >> params:
        raise InvalidMessage(f"presence has bits past parameter {params - 1}")
    return frozenset(i for i in range(params) if number >> i & 1)


class ShardWeights:
    """One shard's state as tensors: `data` holds its bytes, each block a view of them."""

    def __init__(self, layout: Layout, shard: int) -> None:
        self.layout, self.shard = layout, shard
        self.nbytes = layout.shard_bytes(shard)
        self.data = torch.zeros(self.nbytes, dtype=torch.uint8)
        start, stop = layout.still_range(shard)
        self.still_nbytes = stop - start
        self.still = torch.empty(0, dtype=torch.uint8)  # replaced whole, never written to
        self._blocks = layout.blocks(shard)
        self._optimizer = SpanOptimizer(
            layout.spec.optimizer, self._blocks, views(self._blocks, self.data)
        )
        self._tried: Sequence[GroupHypers] = ()

    def apply(self, record: Record, payloads: Mapping[Handle, Payload]) -> None:
        """What `record` does to the tensors. The same records give the same bits."""
        match record:
            case SeedRecord(_, seed) if seed.still:
                self.still = payloads[seed.payload].data
            case SeedRecord(_, seed):
                self.data.copy_(payloads[seed.payload].data)
            case PushRecord(_, pushes):
                for push in pushes:
                    self._step(payloads[push.grad])
            case MembersRecord():
                pass

    def _step(self, payload: Payload) -> None:
        header, grads = payload.header, payload.data
        assert isinstance(header, PushHeader)
        present = present_of(header.present, len(self.layout.spec.params))
        if present:
            groups = [wire.unpack_hypers(group) for group in header.groups]
            self._optimizer.step(views(self._blocks, grads), present, groups)

    def check_hypers(self, header: PushHeader) -> None:
        """Raises UsageError where `step` would. So that a record never fails to apply."""
        if header.present.strip(b"\0"):
            groups = [wire.unpack_hypers(group) for group in header.groups]
            self._optimizer.check(groups)
            if header.groups != self._tried:
                try_step(self.layout.spec.optimizer, groups)
                self._tried = header.groups

    def first_not_finite(self, data: torch.Tensor, present: frozenset[int]) -> str:
        """The name of the first present parameter with a NaN or Inf in `data`, or ""."""
        for block, flat in zip(self._blocks, views(self._blocks, data), strict=True):
            for part in block.parts:
                values = flat[part.start : part.stop]
                if part.param in present and not is_finite(values):
                    return self.layout.spec.params[part.param].name
        return ""

    def snapshot(self) -> dict[str, Any]:
        return {
            "weights": self.data.clone(),
            "still": self.still,
            "optimizer": self._optimizer.snapshot(),
        }

    def restore(self, data: dict[str, Any]) -> None:
        self.data.copy_(data["weights"])
        self.still = data["still"]
        self._optimizer.restore(data["optimizer"])


def try_step(kind: str, groups: Sequence[Hypers]) -> None:
    """Step one vector a group. Raises UsageError for numbers that torch trips over in a step,
    such as maximize=0, which its fused kernels take for no bool.
    """
    blocks = [Block(g, "float32", 0, ALIGN, (Part(g, 0, ALIGN),)) for g in range(len(groups))]
    weights, grads = ([torch.zeros(ALIGN) for _ in groups] for _ in range(2))
    optimizer = SpanOptimizer(kind, blocks, weights)
    try:
        optimizer.step(grads, frozenset(range(len(groups))), groups)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        fact = f"{kind} cannot step with {[dict(group) for group in groups]}"
        todo = "give each number the type that torch documents, such as True and not 1"
        raise UsageError(fact, todo=todo) from error


def views(blocks: Sequence[Block], data: torch.Tensor) -> list[torch.Tensor]:
    """Each block of a shard's bytes as its flat tensor."""
    return [data[b.offset_bytes : b.offset_bytes + b.nbytes].view(DTYPES[b.master]) for b in blocks]


def is_finite(values: torch.Tensor) -> bool:
    """A finite sum proves it in one pass; only an overflowing sum needs the exact look."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
