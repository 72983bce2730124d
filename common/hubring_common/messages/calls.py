"""The calls of the coordinator, and the status that it answers with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from hubring_common.ids import BatchKey, Digest, Seq, Session
from hubring_common.layout import ModelSpec
from hubring_common.messages.members import (
    MemberState,
    Role,
    RunState,
    ShardProgress,
    WorkerProgress,
)


@dataclass(frozen=True, slots=True)
class ModelDeclaration:
    """A worker's model and settings. The first one's bind the run."""

    session: Session
    spec: ModelSpec
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataDeclaration:
    """A worker's training data. The first one's binds the run."""

    session: Session
    settings: Mapping[str, str]
    batches: int


@dataclass(frozen=True, slots=True)
class Done:
    """Answer of a call that has nothing to say but that it is done."""


@dataclass(frozen=True, slots=True)
class Seeded:
    session: Session
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """`count` batches of an epoch from `first` on."""

    epoch: int
    first: int
    count: int

    def keys(self) -> list[BatchKey]:
        return [BatchKey(self.epoch, self.first + i) for i in range(self.count)]


def spans_of(keys: Iterable[BatchKey]) -> tuple[Span, ...]:
    """The keys as spans, neighbours joined; in the order given."""
    spans: list[Span] = []
    for key in keys:
        last = spans[-1] if spans else None
        if last is not None and key == (last.epoch, last.first + last.count):
            spans[-1] = Span(last.epoch, last.first, last.count + 1)
        else:
            spans.append(Span(key.epoch, key.batch, 1))
    return tuple(spans)


@dataclass(frozen=True, slots=True)
class Take:
    """Ask for a task of `epoch` (or of an earlier one, if a worker died with it).

    After a lost answer the same `seq` is sent again, and gets the same task.
    """

    session: Session
    epoch: int
    seq: Seq


class TakeState(Enum):
    TASK = 1
    OVER = 2
    """No task is left of this epoch."""
    WAIT = 3
    """Ask again: a silent worker holds the rest."""


@dataclass(frozen=True, slots=True)
class Taken:
    state: TakeState
    span: Span | None = None
    why: str = ""
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Settle:
    """Batches that every shard acknowledged, and batches given back untrained."""

    session: Session
    done: tuple[Span, ...] = ()
    returned: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """A worker takes no more data and has no push in flight."""

    session: Session


@dataclass(frozen=True, slots=True)
class Leave:
    """A worker's last word. `kind` is empty after a good end, else the error's class."""

    session: Session
    kind: str = ""
    why: str = ""
    traceback: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    progress: WorkerProgress | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Drain the run, or end it at once."""

    why: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class StatusRequest:
    pass


@dataclass(frozen=True, slots=True)
class MemberStatus:
    name: str
    role: Role
    state: MemberState
    session: Session
    host: str
    pid: int
    last_heard: float
    why: str = ""
    worker: WorkerProgress | None = None


@dataclass(frozen=True, slots=True)
class ShardStatus:
    shard: int
    server: str
    progress: ShardProgress


@dataclass(frozen=True, slots=True)
class EpochStatus:
    epoch: int
    batches: int
    done: int
    leased: int
    left: int


@dataclass(frozen=True, slots=True)
class Status:
    run: str
    state: RunState
    mode: str
    why: str = ""
    who: str = ""
    kind: str = ""
    traceback: str = ""
    waiting_for: str = ""
    seconds: float = 0.0
    first_step_seconds: float = 0.0
    members: tuple[MemberStatus, ...] = ()
    shards: tuple[ShardStatus, ...] = ()
    epochs: tuple[EpochStatus, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
