"""The status of a run, as the coordinator tells it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hubring_common.ids import Session
from hubring_common.messages.data import SetAside
from hubring_common.messages.members import (
    MemberState,
    Role,
    RunState,
    ShardProgress,
    WorkerProgress,
)


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
class RunEvent:
    """What happened, for people. `seconds` into the run."""

    seconds: float
    kind: str
    who: str
    text: str


@dataclass(frozen=True, slots=True)
class EvaluationStatus:
    """`seconds` into the run and `steps` of the cluster, when it was finished; 0: not yet."""

    number: int
    batches: int
    done: int
    seconds: float = 0.0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goal:
    """How far a stop rule is."""

    name: str
    wanted: float
    reached: float


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
    events: tuple[RunEvent, ...] = ()
    evaluations: tuple[EvaluationStatus, ...] = ()
    goals: tuple[Goal, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    ledger: str = ""
    boot: int = 0
    epochs_done: int = 0
