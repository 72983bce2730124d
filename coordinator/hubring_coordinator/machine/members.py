"""Members: sessions, names, leases. Who may do what is judged elsewhere."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from typing import Any

from hubring_common import plain
from hubring_common.ids import Seq, Session, View
from hubring_common.messages import (
    Formed,
    Hello,
    MemberState,
    MemberStatus,
    Quiet,
    Recall,
    Role,
    ShardProgress,
    Span,
    WorkerProgress,
)
from hubring_coordinator.machine.events import Stream

GONE_KEPT = 64
"""Dead and departed members that the status still shows; a restart storm must not grow it."""


NAMED = 6
"""Members that a sentence names; of more it gives the number."""


@dataclass(slots=True)
class MemberFacts:
    """What of a member is durable."""

    session: Session
    role: Role
    name: str
    host: str = ""
    pid: int = 0
    slot: int = 0
    endpoints: tuple[str, ...] = ()
    torch: str = ""
    state: MemberState = MemberState.JOINING
    why: str = ""
    left: bool = False
    declared: bool = False
    """A worker: its model is the run's."""
    since: View = 0
    """A worker: the first view that has it; 0 while none has."""
    drains: str = ""
    """A worker: why it leaves before the others; empty while it does not."""
    asked: Seq = 0
    granted: tuple[Span, ...] = ()
    """A worker: its last take that got tasks, and the tasks."""
    installed: bool = False
    """A server: it acknowledged that it holds its shard."""


@dataclass(slots=True)
class Told:
    """What went down a member's stream. A new stream starts afresh, so that nothing is missed."""

    install: bool = False
    view: View = 0
    formed: Formed | None = None
    drain: bool = False
    quiet: Quiet | None = None
    recall: Recall | None = None
    """A worker: asked to give batches back, and not answered yet."""
    bare: tuple[int, int] = (-1, 0)
    """A worker: the epoch, and how many batches of it it held when it had begun them all."""
    end: bool = False


@dataclass(slots=True)
class Member(MemberFacts):
    heard: float = 0.0
    stream: Stream | None = None
    told: Told = field(default_factory=Told)
    acked: View = 0
    """A server: the highest view that it acknowledged."""
    buffers: bytes = b""
    """A worker: those that it finished with."""
    pace: float = 0.0
    """A worker: seconds of its work on one batch, lately; 0: not known."""
    worker: WorkerProgress | None = None
    shards: tuple[ShardProgress, ...] = ()

    @property
    def is_live(self) -> bool:
        return self.state is not MemberState.DEAD and not self.left

    @property
    def is_done(self) -> bool:
        """A worker: it takes no more data."""
        return self.state is MemberState.FINISHED

    def is_suspect(self, now: float, heartbeat: float) -> bool:
        """Its stream is broken, or it missed three heartbeats; its lease still counts."""
        return self.stream is None or now - self.heard > 3 * heartbeat

    def row(self) -> Any:
        return {f.name: plain.dump(getattr(self, f.name)) for f in fields(MemberFacts)}

    def status(self, now: float) -> MemberStatus:
        return MemberStatus(
            self.name,
            self.role,
            self.state,
            self.session,
            self.host,
            self.pid,
            now - self.heard,
            self.why,
            self.worker,
        )


def listed(members: Sequence[Member]) -> str:
    """Such as "worker-0, worker-1 and worker-2"."""
    names = [member.name for member in members]
    if len(names) > NAMED:
        names[NAMED - 1 :] = [f"{len(names) - NAMED + 1} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


class Roster:
    """Every member that is live, and the last ones that were. `touched` hears a changed session."""

    def __init__(self, members: Iterable[Member], touched: Callable[[Session], None]) -> None:
        self.all = {member.session: member for member in members}
        self._touched = touched
        self._streams: dict[Stream, Member] = {}
        self._sort()

    def touch(self, session: Session) -> None:
        """A member changed, came or went. The lists below are read many times an event."""
        self._touched(session)
        self._sort()

    def _sort(self) -> None:
        live = [m for m in self.all.values() if m.is_live]
        self.workers = [m for m in live if m.role is Role.WORKER]
        """The live ones, by session."""
        self.servers = sorted((m for m in live if m.role is Role.SERVER), key=lambda m: m.slot)
        """The live ones, by slot."""
        self.in_view = [m for m in self.workers if m.since]
        """The workers that the present view has, by session. The first is chief."""

    def on(self, stream: Stream) -> Member | None:
        return self._streams.get(stream)

    def admit(self, session: Session, hello: Hello) -> Member:
        name = self._free_name() if hello.role is Role.WORKER else f"server-{hello.slot}"
        member = Member(session, hello.role, name, hello.host, hello.pid, hello.slot)
        member.torch = hello.torch
        self.all[session] = member
        self.touch(session)
        self.prune()
        return member

    def attach(self, member: Member, stream: Stream, now: float) -> Stream | None:
        """Returns the member's earlier stream, if that still stood."""
        earlier = member.stream
        if earlier is not None:
            del self._streams[earlier]
        self._streams[stream] = member
        member.stream, member.told, member.heard = stream, Told(), now
        return earlier

    def detach(self, member: Member) -> None:
        if member.stream is not None:
            del self._streams[member.stream]
            member.stream = None

    def _free_name(self) -> str:
        taken = {m.name for m in self.workers}
        return next(name for n in count() if (name := f"worker-{n}") not in taken)

    def prune(self) -> None:
        """Forget the first of those that are gone."""
        gone = [m for m in self.all.values() if not m.is_live and m.stream is None]
        for member in gone[:-GONE_KEPT]:
            del self.all[member.session]
            self.touch(member.session)

    def check(self) -> None:
        names = [m.name for m in (*self.workers, *self.servers)]
        assert len(names) == len(set(names)), "two live members share a name"
        listed = self.workers, self.servers, self.in_view
        self._sort()
        assert listed == (self.workers, self.servers, self.in_view), "a change was not touched"
        assert list(self.all) == sorted(self.all), "members are kept by session"
        for stream, member in self._streams.items():
            assert member.stream == stream, "a stream leads to a member that left it"
            assert self.all.get(member.session) is member, "a stream leads to a forgotten member"
