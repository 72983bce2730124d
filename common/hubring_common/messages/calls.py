"""The calls of the coordinator, but for those about data, evaluation and status."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hubring_common.ids import Digest, Session
from hubring_common.layout import ModelSpec
from hubring_common.messages.members import WorkerProgress


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
    """Answer of a call that is done. `whole_below`, of a Settle: every batch of the epochs from
    the settled one on, below this one, is with somebody; 0: not known.
    """

    whole_below: int = 0


@dataclass(frozen=True, slots=True)
class Seeded:
    session: Session
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """A worker takes no more data and has no push in flight.

    `buffers`: those of its normalizing layers, as float64s; as many at every worker.
    """

    session: Session
    buffers: bytes = b""


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
class MemberDrain:
    """One worker stops taking data, finishes what it has in hand and leaves."""

    member: str
    why: str


@dataclass(frozen=True, slots=True)
class StacksRequest:
    pass


@dataclass(frozen=True, slots=True)
class MemberStacks:
    member: str
    text: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Stacks:
    members: tuple[MemberStacks, ...]
