"""The calls of a shard: headers and answers. The tensors' bytes follow them as frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from hubring_common.ids import BatchKey, Digest, Lsn, PushId, Seq, Session

Hyper: TypeAlias = bool | int | float | tuple[float, ...]
"""One value of an optimizer's param group, such as lr or betas."""
Hypers: TypeAlias = Mapping[str, Hyper]


@dataclass(frozen=True, slots=True)
class HyperValue:
    """A Hyper on the wire: `numbers` holds one value unless `is_tuple`."""

    numbers: tuple[float, ...] = ()
    is_tuple: bool = False
    is_bool: bool = False
    is_int: bool = False


@dataclass(frozen=True, slots=True)
class GroupHypers:
    values: Mapping[str, HyperValue]


@dataclass(frozen=True, slots=True)
class SeedHeader:
    """A shard's first weights, or `still`: what it keeps of the still tensors. Frames follow."""

    run: str
    shard: int
    session: Session
    nbytes: int
    digest: Digest
    still: bool = False


@dataclass(frozen=True, slots=True)
class SeedAnswer:
    digest: Digest


@dataclass(frozen=True, slots=True)
class PushHeader:
    """One gradient for one shard. Frames of the touched slices follow, in the shard's order."""

    run: str
    shard: int
    id: PushId
    first_incomplete: Seq
    keys: tuple[BatchKey, ...]
    samples: int
    base: Lsn
    present: bytes
    groups: tuple[GroupHypers, ...]
    nbytes: int
    digest: Digest


class Verdict(Enum):
    APPLIED = 1
    DUPLICATE = 2
    """Seen before: `lsn` is the first copy's."""
    BATCH_DONE = 3
    """Refused whole: the `done_keys` were trained already."""
    NOT_FINITE = 4
    """Refused: `param` has a NaN or Inf gradient."""


@dataclass(frozen=True, slots=True)
class PushAnswer:
    """What became of a push; then the frames of the whole shard at `version` follow."""

    verdict: Verdict
    lsn: Lsn
    version: Lsn
    nbytes: int
    digest: Digest
    done_keys: tuple[BatchKey, ...] = ()
    param: str = ""


@dataclass(frozen=True, slots=True)
class PullHeader:
    run: str
    shard: int
    session: Session
    still: bool = False
    """What the shard keeps of the still tensors is wanted, not its weights."""
    have: Digest = 0
    """Of the bytes that the caller has. Where the shard's are the same, none travel."""


@dataclass(frozen=True, slots=True)
class PullAnswer:
    version: Lsn
    nbytes: int
    digest: Digest
