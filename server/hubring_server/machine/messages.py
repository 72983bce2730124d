"""Records, events and effects of a shard. Payloads are handles into the shell's arena."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from hubring_common.ids import BatchKey, Digest, Lsn, PushId, Seq, Session, View

Handle: TypeAlias = int


@dataclass(frozen=True, slots=True)
class Members:
    """Event: from this view on, these sessions may push. The lowest is chief."""

    view: View
    sessions: frozenset[Session]


@dataclass(frozen=True, slots=True)
class Seed:
    """Event: the first weights, or `still`: the shard's part of the still tensors."""

    session: Session
    digest: Digest
    payload: Handle
    still: bool = False


@dataclass(frozen=True, slots=True)
class Push:
    """Event: one gradient. Its size, digest and finiteness are checked already."""

    id: PushId
    first_incomplete: Seq
    batches: frozenset[BatchKey]
    digest: Digest
    grad: Handle


@dataclass(frozen=True, slots=True)
class Stored:
    """Event: every sink of the log has the records up to `lsn`."""

    lsn: Lsn


@dataclass(frozen=True, slots=True)
class MembersRecord:
    lsn: Lsn
    members: Members


@dataclass(frozen=True, slots=True)
class SeedRecord:
    lsn: Lsn
    seed: Seed


@dataclass(frozen=True, slots=True)
class PushRecord:
    lsn: Lsn
    pushes: tuple[Push, ...]


Record: TypeAlias = MembersRecord | SeedRecord | PushRecord


class Why(Enum):
    """Why a push or a seed was turned away."""

    FENCED = "the session is not a member"
    UNSEEDED = "the shard has no weights yet"
    NOT_CHIEF = "only the chief seeds"
    SEEDED = "the shard holds other weights already"
    STILL_DUE = "the model's still tensors come before its first weights"
    STALE = "the id lies below the session's mark"
    WINDOW = "the id lies past the session's window"
    GAP = "the mark would move over an id that was never applied"
    DIGEST = "the id was applied with another payload"
    NO_KEYS = "a push names the batches of its gradient"
    BATCH_DONE = "a batch was trained already"


@dataclass(frozen=True, slots=True)
class Store:
    record: Record


@dataclass(frozen=True, slots=True)
class Apply:
    record: Record


@dataclass(frozen=True, slots=True)
class Ack:
    """The push is record `lsn`; `again` when it was known before."""

    id: PushId
    lsn: Lsn
    again: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    id: PushId
    why: Why
    keys: frozenset[BatchKey] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class SeedAck:
    session: Session
    digest: Digest
    still: bool = False


@dataclass(frozen=True, slots=True)
class SeedRefuse:
    session: Session
    digest: Digest
    why: Why
    still: bool = False


@dataclass(frozen=True, slots=True)
class MembersAck:
    view: View


@dataclass(frozen=True, slots=True)
class Free:
    payload: Handle


Event: TypeAlias = Members | Seed | Push | Stored
Effect: TypeAlias = Store | Apply | Ack | Refuse | SeedAck | SeedRefuse | MembersAck | Free
