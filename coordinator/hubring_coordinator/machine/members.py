"""Members: sessions, names, leases. Who may do what is judged elsewhere."""

from collections.abc import Callable, Iterable
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
    Role,
    ShardProgress,
    Span,
    WorkerProgress,
)
from hubring_coordinator.machine.events import Stream

GONE_KEPT = 64
"""Dead and departed members that the status still shows; a restart storm must not grow it."""


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
    state: MemberState = MemberState.JOINING
    why: str = ""
    left: bool = False
    declared: bool = False
    """A worker: its model is the run's."""
    since: View = 0
    """A worker: the first view that has it; 0 while none has."""
    asked: Seq = 0
    granted: Span | None = None
    """A worker: its last take that got a task, and the task."""
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
    end: bool = False


@dataclass(slots=True)
class Member(MemberFacts):
    heard: float = 0.0
    stream: Stream | None = None
    told: Told = field(default_factory=Told)
    acked: View = 0
    """A server: the highest view that it acknowledged."""
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


class Roster:
    """Every member that is live, and the last ones that were. `touch` hears a changed session."""

    def __init__(self, members: Iterable[Member], touch: Callable[[Session], None]) -> None:
        self.all = {member.session: member for member in members}
        self.touch = touch
        self._streams: dict[Stream, Member] = {}

    @property
    def workers(self) -> list[Member]:
        """The live ones, by session."""
        return [m for m in self.all.values() if m.role is Role.WORKER and m.is_live]

    @property
    def servers(self) -> list[Member]:
        """The live ones, by slot."""
        live = (m for m in self.all.values() if m.role is Role.SERVER and m.is_live)
        return sorted(live, key=lambda m: m.slot)

    @property
    def in_view(self) -> list[Member]:
        """The workers that the present view has, by session. The first is chief."""
        return [m for m in self.workers if m.since]

    def on(self, stream: Stream) -> Member | None:
        return self._streams.get(stream)

    def admit(self, session: Session, hello: Hello) -> Member:
        name = self._free_name() if hello.role is Role.WORKER else f"server-{hello.slot}"
        member = Member(session, hello.role, name, hello.host, hello.pid, hello.slot)
        self.all[session] = member
        self._prune()
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

    def _prune(self) -> None:
        gone = [m for m in self.all.values() if not m.is_live and m.stream is None]
        for member in gone[:-GONE_KEPT]:
            del self.all[member.session]
            self.touch(member.session)

    def check(self) -> None:
        names = [m.name for m in (*self.workers, *self.servers)]
        assert len(names) == len(set(names)), "two live members share a name"
        assert list(self.all) == sorted(self.all), "members are kept by session"
        for stream, member in self._streams.items():
            assert member.stream == stream, "a stream leads to a member that left it"
            assert self.all.get(member.session) is member, "a stream leads to a forgotten member"
