"""Room for tensor bytes in flight: pooled buffers, lent by handle, bounded in number.

A shard's buffers are all of one size, so that a returned one serves the next push at once: the
kernel takes 0.6-0.8 ms to hand out a fresh megabyte.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hubring_common.carrier.base import Extent
from hubring_common.errors import Busy
from hubring_common.messages import PushHeader, SeedHeader


@dataclass(frozen=True, slots=True)
class Payload:
    """What a handle stands for: the header that came and the shard's bytes behind it."""

    header: PushHeader | SeedHeader
    data: torch.Tensor  # uint8, the whole shard; only the touched slices are filled

    def copy(self) -> "Payload":
        return Payload(self.header, self.data.clone())


class Pool:
    """At most `limit` buffers of `nbytes` bytes. Safe from any thread.

    Who finds none waits for one: over gRPC the sender is then held back by flow control. A pool
    that does not `keep` them lets go of returned buffers, for bytes that come once a run.
    """

    def __init__(self, nbytes: int, limit: int, what: str, *, keep: bool = True) -> None:
        self.nbytes, self._limit, self._what, self._keep = nbytes, limit, what, keep
        self._changed = threading.Condition()
        self._idle: list[torch.Tensor] = []
        self._out = 0

    def take(self, timeout: float) -> torch.Tensor:
        """A buffer with whatever bytes it last held. Raises Busy after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._out < self._limit, timeout):
                fact = f"all {self._limit} {self._what} of {self.nbytes} bytes are in use"
                raise Busy(fact, todo="the call is sent again by itself")
            self._out += 1
            if self._idle:
                return self._idle.pop()
        return torch.zeros(self.nbytes, dtype=torch.uint8)

    def give(self, buffer: torch.Tensor) -> None:
        with self._changed:
            self._out -= 1
            if self._keep:
                self._idle.append(buffer)
            self._changed.notify()

    @property
    def out(self) -> int:
        """Buffers that are lent."""
        return self._out


def bytes_of(tensor: torch.Tensor, start: int = 0, stop: int | None = None) -> memoryview:
    """The bytes [start, stop) of a flat uint8 tensor, without a copy."""
    array: Any = tensor[start:stop].numpy()
    return memoryview(array)


class Staged:
    """One buffer of a Pool on its way in. Belongs to the call until `surrender`."""

    def __init__(self, pool: Pool, ranges: Sequence[tuple[int, int]], timeout: float) -> None:
        self._pool = pool
        self.data: torch.Tensor | None = pool.take(timeout)
        self.extents = [Extent(a, bytes_of(self.data, a, b)) for a, b in ranges]

    def surrender(self) -> torch.Tensor:
        """Hand the buffer over; whoever takes it gives it to the pool."""
        data, self.data, self.extents = self.data, None, []
        if data is None:
            raise RuntimeError("a staging is used once")
        return data

    def discard(self) -> None:
        if self.data is not None:
            self._pool.give(self.surrender())


class Still:
    """The shard's part of the still tensors, as a Version. No copy: nobody writes to it again."""

    def __init__(self, lsn: int, data: torch.Tensor) -> None:
        self.lsn, self.data = lsn, bytes_of(data)

    def release(self) -> None:
        self.data = memoryview(b"")


class CopiedVersion:
    """A whole version in a buffer of a Pool, until released."""

    def __init__(self, pool: Pool, lsn: int, data: torch.Tensor) -> None:
        self._pool, self._tensor, self.lsn = pool, data, lsn
        self.data = bytes_of(data)

    def release(self) -> None:
        self.data = memoryview(b"")
        self._pool.give(self._tensor)
