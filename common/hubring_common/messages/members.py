"""The Attend stream: what goes up from a member and down to it."""

from dataclasses import dataclass
from enum import Enum

from hubring_common.ids import Lsn, Session, View
from hubring_common.layout import ModelSpec

MAJOR, MINOR = 1, 0
"""The wire's version: majors must be equal, the lower minor holds."""


class Role(Enum):
    WORKER = 1
    SERVER = 2


class RunState(Enum):
    FORMING = 1
    """Waiting for servers, a first worker, or the first weights."""
    TRAINING = 2
    DRAINING = 3
    """Asked to stop: no new data is leased, workers finish what they hold."""
    QUIET = 4
    """No push is in flight and none will come: the weights are final."""
    FINISHED = 5
    STOPPED = 6
    """Drained before its end on request."""
    FAILED = 7

    @property
    def is_over(self) -> bool:
        return self in {RunState.FINISHED, RunState.STOPPED, RunState.FAILED}


class MemberState(Enum):
    JOINING = 1
    ACTIVE = 2
    FINISHED = 3
    """Takes no more data; waits for the others, or has left."""
    DEAD = 4


@dataclass(frozen=True, slots=True)
class Hello:
    role: Role
    run: str = ""
    session: Session = 0
    host: str = ""
    pid: int = 0
    slot: int = 0
    endpoints: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    major: int = MAJOR
    minor: int = MINOR
    torch: str = ""


@dataclass(frozen=True, slots=True)
class WorkerProgress:
    steps: int = 0
    samples: int = 0
    epoch: int = 0
    loss: float = float("nan")
    rate: float = 0.0
    wait_share: float = 0.0
    staleness_sum: int = 0
    staleness_max: int = 0
    pushes: int = 0
    waiting_for: str = ""
    batch_seconds: float = 0.0
    staleness: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardProgress:
    shard: int = 0
    nbytes: int = 0
    version: Lsn = 0
    applied: int = 0
    duplicates: int = 0
    refused: int = 0
    apply_seconds: float = 0.0
    queue: int = 0
    batches: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    worker: WorkerProgress | None = None
    shards: tuple[ShardProgress, ...] = ()


@dataclass(frozen=True, slots=True)
class Acked:
    """The order with this id has taken effect at the member."""

    order: int


@dataclass(frozen=True, slots=True)
class StacksDump:
    """Answer of DumpStacks."""

    request: int
    text: str


@dataclass(frozen=True, slots=True)
class FromMember:
    hello: Hello | None = None
    heartbeat: Heartbeat | None = None
    acked: Acked | None = None
    stacks: StacksDump | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    session: Session
    name: str
    run: str
    mode: str
    seed: int
    servers: int
    timeout: float
    run_dir: str = ""
    minor: int = MINOR
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Install:
    """To a server: hold this shard, empty until the chief seeds it."""

    order: int
    shard: int
    shards: int
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class Members:
    """To a server: the sessions that may push, from this view on. The lowest is chief."""

    order: int
    view: View
    sessions: tuple[Session, ...]


@dataclass(frozen=True, slots=True)
class ShardPlace:
    shard: int
    server: str
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Formed:
    """To a worker: every server has admitted it; here is where the shards are.

    `seed_them`: it is the chief and the shards have no weights yet. Otherwise, with `seeded`
    false, another worker seeds them and a later Formed says so.
    """

    view: View
    places: tuple[ShardPlace, ...]
    seeded: bool
    seed_them: bool


@dataclass(frozen=True, slots=True)
class Quiet:
    """To a worker: the weights are final; the chief also writes them down."""

    write_model: bool
    buffers: bytes = b""


@dataclass(frozen=True, slots=True)
class Drain:
    """To a worker: finish what is in hand, then end. `alone`: the run goes on without it."""

    why: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Recall:
    """To a worker: give back up to `count` batches of `epoch` that it has not begun, the last ones
    first; or, with `keep`, of each epoch from that one on all but so many. A Settle that names
    the recall answers it.
    """

    recall: int
    epoch: int
    count: int
    keep: int = 0


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """To any member: send the Python stacks of all threads."""

    request: int


@dataclass(frozen=True, slots=True)
class End:
    """To any member: the run is over; `kind` and `who` name the error of a failed one."""

    state: RunState
    why: str = ""
    who: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class ToMember:
    welcome: Welcome | None = None
    install: Install | None = None
    members: Members | None = None
    formed: Formed | None = None
    quiet: Quiet | None = None
    drain: Drain | None = None
    end: End | None = None
    recall: Recall | None = None
    dump_stacks: DumpStacks | None = None
