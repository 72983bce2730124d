"""The names that travel: plain integers with a meaning, and the two-part ids."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Session: TypeAlias = int
"""A member's incarnation, from one durable counter of the coordinator; never reused."""
Seq: TypeAlias = int
"""The number of a push within its session, from 0, counted for each shard apart."""
Lsn: TypeAlias = int
"""The number of a record in a shard's log, from 1: the version of the state it leads to."""
View: TypeAlias = int
"""One membership of the run."""
Digest: TypeAlias = int
"""An xxh3-64 of bytes."""


class BatchKey(NamedTuple):
    """One minibatch of one data epoch, whoever trains it."""

    epoch: int
    batch: int


UNLEASED = 1 << 40
"""Epochs from here on are of gradients on no leased batch: UNLEASED + session, batch counted.
P6 wants a key for every push.
"""


@dataclass(frozen=True, slots=True)
class PushId:
    session: Session
    seq: Seq
