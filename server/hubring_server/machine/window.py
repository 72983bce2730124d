"""What a shard remembers of one session's pushes (P1-P3), and of the batches done (P6)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from hubring_common.ids import UNLEASED, BatchKey, Digest, Lsn, Seq
from hubring_server.machine.messages import Why

WINDOW = 4
"""Pushes that a session may have outstanding at a shard (P1)."""


class Applied(NamedTuple):
    lsn: Lsn
    digest: Digest


@dataclass(slots=True)
class Window:
    """The ids of one session: below `mark` all are applied; from it on, `applied` says which."""

    mark: Seq = 0
    applied: dict[Seq, Applied] = field(default_factory=dict)
    logged: int = 0

    def judge(self, seq: Seq, first_incomplete: Seq) -> Why | None:
        """Why an id that is not in `applied` cannot be admitted, or None."""
        if seq < self.mark:
            return Why.STALE
        if not first_incomplete <= seq < first_incomplete + WINDOW:  # P2
            return Why.WINDOW
        if any(s not in self.applied for s in range(self.mark, first_incomplete)):  # P3
            return Why.GAP
        return None

    def log(self, seq: Seq, first_incomplete: Seq, applied: Applied) -> None:
        """The push became a record: only now the mark moves (P3)."""
        self.applied[seq] = applied
        self.logged += 1
        for passed in range(self.mark, first_incomplete):
            del self.applied[passed]
        self.mark = max(self.mark, first_incomplete)

    @property
    def ids(self) -> int:
        """Distinct ids of this session that became records; equals `logged` (I4)."""
        return self.mark + len(self.applied)


CHUNK = 12
"""Bits of a batch number that one chunk of the done batches covers: 4,096 batches, 512 bytes."""


class DoneBatches:
    """The (epoch, batch) keys of logged pushes: a bit each, so that long runs stay small.

    In chunks that grow as they fill, for batch numbers that are far apart: those of streamed data
    name their shard too, and whoever sends a huge one gets no more memory for it.
    """

    def __init__(self) -> None:
        self._bits: dict[BatchKey, bytearray] = {}  # (epoch, chunk) -> its bits
        self._unstored: dict[BatchKey, Lsn] = {}
        self.leased = 0
        """How many of them are of leased data."""

    def __contains__(self, key: BatchKey) -> bool:
        bits = self._bits.get(BatchKey(key.epoch, key.batch >> CHUNK))
        byte, bit = _place(key)
        return bits is not None and byte < len(bits) and bool(bits[byte] >> bit & 1)

    def among(self, keys: Iterable[BatchKey]) -> frozenset[BatchKey]:
        return frozenset(key for key in keys if key in self)

    def add(self, key: BatchKey, lsn: Lsn) -> None:
        chunk = BatchKey(key.epoch, key.batch >> CHUNK)
        bits = self._bits.setdefault(chunk, bytearray())
        byte, bit = _place(key)
        bits.extend(bytes(max(0, byte + 1 - len(bits))))
        bits[byte] |= 1 << bit
        self._unstored[key] = lsn
        self.leased += key.epoch < UNLEASED

    def stored(self, lsn: Lsn) -> None:
        self._unstored = {k: at for k, at in self._unstored.items() if at > lsn}

    def latest_unstored(self, keys: Iterable[BatchKey]) -> Lsn:
        """The record that must be stored before these keys may be called done (P4)."""
        return max((self._unstored.get(key, 0) for key in keys), default=0)

    def count(self) -> int:
        return sum(int.from_bytes(bits).bit_count() for bits in self._bits.values())

    def snapshot(self) -> dict[BatchKey, bytes]:
        return {chunk: bytes(bits) for chunk, bits in self._bits.items()}

    def restore(self, data: dict[BatchKey, bytes]) -> None:
        self._bits = {BatchKey(*chunk): bytearray(bits) for chunk, bits in data.items()}
        self._unstored = {}
        leased = (bits for chunk, bits in self._bits.items() if chunk.epoch < UNLEASED)
        self.leased = sum(int.from_bytes(bits).bit_count() for bits in leased)


def _place(key: BatchKey) -> tuple[int, int]:
    """Byte and bit of a batch within its chunk."""
    return divmod(key.batch & (1 << CHUNK) - 1, 8)
