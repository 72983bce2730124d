"""The carrier's contract: the worker's end (`Carrier`) and the shard's end (`ShardPort`).

A carrier moves bytes from buffer to buffer and knows neither rounds nor optimizers. Headers and
answers are `messages`; tensors are extents of the shard, so that no contract forces a copy.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import xxhash

from hubring_common.errors import InvalidMessage
from hubring_common.ids import Digest, Lsn
from hubring_common.messages import (
    PullAnswer,
    PullHeader,
    PushAnswer,
    PushHeader,
    SeedAnswer,
    SeedHeader,
)


class Extent(NamedTuple):
    """Bytes that lie at `offset` of a shard. `data` is flat, of unsigned bytes."""

    offset: int
    data: memoryview


Extents: TypeAlias = Sequence[Extent]
"""In ascending order of offset, not overlapping."""


class Carrier(Protocol):
    """One worker's road to one shard. Used by one thread at a time.

    Every call ends within `timeout` seconds; it raises Retryable errors where the same call may
    be sent again, and Fatal ones where it may not. After an error the bytes of `weights` are
    undefined until a later call succeeds.
    """

    def seed(self, header: SeedHeader, weights: Extents, timeout: float) -> SeedAnswer:
        """Send a shard's first weights, or its part of the still tensors, as `header` says."""
        ...

    def push(
        self, header: PushHeader, grads: Extents, weights: Extents, timeout: float
    ) -> PushAnswer:
        """Send `grads`; fill `weights` with the whole version that the answer names."""
        ...

    def pull(self, header: PullHeader, weights: Extents, timeout: float) -> PullAnswer:
        """Fill `weights` with one whole version, or with the shard's part of the still tensors.

        They are not written to where the shard's bytes have the digest `header.have`.
        """
        ...

    def close(self) -> None: ...


class Staging(Protocol):
    """Room for the bytes of one push or seed. `extents` is what the sender must fill."""

    @property
    def extents(self) -> Extents: ...

    def discard(self) -> None:
        """Give the room back unused. Harmless after `seed` or `push` took it."""
        ...


S = TypeVar("S", bound=Staging)


class Version(Protocol):
    """A whole version of a shard's weights: a copy that no later record changes."""

    @property
    def lsn(self) -> Lsn: ...

    @property
    def data(self) -> memoryview: ...

    def release(self) -> None:
        """Give the copy's room back. Call once, when `data` has been sent."""
        ...


class ShardPort(Protocol[S]):
    """What a carrier's far end calls. Safe from any thread.

    `stage_*` judge the header before any room is made; the caller then fills the extents and
    hands the staging to `seed` or `push`, which take it over whatever they answer. Whether the
    bytes are those that were sent (`nbytes`, `digest`) is the carrier's to check and to say.
    """

    def stage_seed(self, header: SeedHeader, timeout: float) -> S: ...

    def seed(self, header: SeedHeader, staging: S, timeout: float) -> SeedAnswer: ...

    def stage_push(self, header: PushHeader, timeout: float) -> S: ...

    def push(
        self, header: PushHeader, staging: S, timeout: float
    ) -> tuple[PushAnswer, Version]: ...

    def pull(self, header: PullHeader, timeout: float) -> Version: ...


def total(extents: Extents) -> int:
    return sum(e.data.nbytes for e in extents)


def digest_of(extents: Extents) -> Digest:
    """xxh3-64 of the bytes in order."""
    state = xxhash.xxh3_64()
    for extent in extents:
        state.update(extent.data)
    return state.intdigest()


def check_digest(extents: Extents, expected: Digest, what: str) -> None:
    """Raises InvalidMessage where the bytes are not those that were sent."""
    if (found := digest_of(extents)) != expected:
        fact = f"{what} arrived as {found:016x}, sent as {expected:016x}"
        raise InvalidMessage(
            fact, todo="bytes changed on the way; is another program on this port?"
        )
