"""Who comes, who is heard of, who is gone: hellos, heartbeats, leases."""

from typing import NoReturn

from hubring_common.errors import (
    InvalidMessage,
    LeaseLost,
    RunEnded,
    UsageError,
    VersionMismatch,
)
from hubring_common.ids import Session, View
from hubring_common.messages import (
    MAJOR,
    MINOR,
    Heartbeat,
    Hello,
    MemberState,
    Role,
    RunState,
    Welcome,
)
from hubring_coordinator.machine.events import Close, Stream
from hubring_coordinator.machine.members import Member
from hubring_coordinator.machine.state import State

INSTALL_ORDER = 1


def members_order(view: View) -> int:
    """The id of the order that tells of `view`: known without a counter, also after a restart."""
    return INSTALL_ORDER + view


class Attendance:
    def __init__(self, state: State) -> None:
        self._state = state
        self._ticked = self._kept = state.now

    def attach(self, stream: Stream, hello: Hello) -> None:
        """Raises what a member is refused with."""
        state = self._state
        self._check_version_and_run(hello)
        member = self._returning(hello) if hello.session else self._newcomer(hello)
        member.endpoints, member.host, member.pid = hello.endpoints, hello.host, hello.pid
        state.roster.touch(member.session)
        if (earlier := state.roster.attach(member, stream, state.now)) is not None:
            fact = f"{member.name} (session {member.session}) attached again on another stream"
            state.effects.append(Close(earlier, RunEnded(fact, who=member.name)))
        state.tell(member, self._welcome(member, hello))

    def beat(self, stream: Stream, heartbeat: Heartbeat) -> None:
        if (member := self._hear(stream)) is None:
            return
        if heartbeat.worker is not None:
            member.worker = heartbeat.worker
        if heartbeat.shards:
            member.shards = heartbeat.shards
        pushed = heartbeat.worker is not None and heartbeat.worker.pushes > 0
        if pushed:
            self.mark_first_step()

    def acked(self, stream: Stream, order: int) -> None:
        """Raises InvalidMessage for an order that was never given."""
        if (member := self._hear(stream)) is None:
            return
        view = order - INSTALL_ORDER
        if member.role is not Role.SERVER or not 0 <= view <= self._state.run.view:
            raise InvalidMessage(f"{member.name} acknowledged order {order}, which was not given")
        if order != INSTALL_ORDER:
            member.acked = max(member.acked, view)
        elif not member.installed:
            member.installed, member.state = True, MemberState.ACTIVE
            self._state.roster.touch(member.session)

    def detach(self, stream: Stream) -> None:
        state = self._state
        if (member := state.roster.on(stream)) is None:
            return
        was_told, is_over = member.told.end, state.run.state.is_over
        state.roster.detach(member)
        if was_told and is_over and member.is_live:
            state.depart(member)

    def caller(self, session: Session) -> Member:
        """The live member that calls, now heard of. Raises LeaseLost, or RunEnded."""
        member = self.live(session)
        member.heard = self._state.now
        return member

    def live(self, session: Session) -> Member:
        """As `caller`, without counting as a sign of life."""
        member = self._state.roster.all.get(session)
        if member is None or not member.is_live:
            self._refuse_session(session, member)
        return member

    def mark_first_step(self) -> None:
        state = self._state
        if not state.run.first_step:
            state.run.first_step = state.elapsed
            state.touch("run")

    def tick(self) -> None:
        """Take leases back. Members are not blamed for time in which this process stood still."""
        state, lease = self._state, self._state.config.timing.lease
        gap, self._ticked = state.now - self._ticked, state.now
        for member in tuple(state.roster.all.values()):
            if gap > lease / 2:
                member.heard = min(state.now, member.heard + gap)
            if member.is_live and state.now - member.heard > lease:
                state.expel(member, f"not heard for {state.now - member.heard:.1f} s")
        self._keep_versions()

    def _keep_versions(self) -> None:
        """Once a lease: how far the weights are, for whoever must say what was lost."""
        state, run = self._state, self._state.run
        if not run.seeded_by or state.now - self._kept < state.config.timing.lease:
            return
        self._kept = state.now
        versions = tuple(max((p.version for p in s.shards), default=0) for s in state.placed)
        if versions != run.lsns:
            run.lsns = tuple(map(max, versions, run.lsns or versions))
            state.touch("run")

    # --- hello ---

    def _check_version_and_run(self, hello: Hello) -> None:
        run = self._state.run.id
        if hello.major != MAJOR:
            fact = f"this member speaks version {hello.major}, the cluster version {MAJOR}"
            raise VersionMismatch(fact, todo="install the same hubring everywhere")
        if hello.run not in {"", run}:
            fact = f"run {hello.run} is not served here; this cluster serves run {run}"
            kind = RunEnded if hello.session else UsageError
            raise kind(fact, todo="give no --run-id, or that one")

    def _returning(self, hello: Hello) -> Member:
        member = self._state.roster.all.get(hello.session)
        if member is None or not member.is_live or member.role is not hello.role:
            self._refuse_session(hello.session, member)
        return member

    def _refuse_session(self, session: Session, member: Member | None) -> NoReturn:
        if self._state.run.state.is_over:
            raise self._state.ended_error()
        if member is None:
            raise LeaseLost(f"session {session} is not known here", todo="start the worker again")
        fact = f"{member.name} (session {session}) is no member any more: {member.why or 'it left'}"
        raise LeaseLost(fact, who=member.name, todo="start the worker again")

    def _newcomer(self, hello: Hello) -> Member:
        run = self._state.run
        if run.state.is_over:
            raise self._state.ended_error()
        if hello.role is Role.SERVER:
            self._supersede(hello.slot)
        elif run.state is RunState.QUIET:
            fact = f"run {run.id} has done its work and is about to end"
            raise RunEnded(fact, todo="start the cluster again for a new run")
        return self._admit(hello)

    def _admit(self, hello: Hello) -> Member:
        state = self._state
        member = state.roster.admit(state.new_session(), hello)
        words = f"{member.name} joined as session {member.session} from {hello.host}"
        state.note("joined", member.name, words)
        self._compare_torch(member)
        return member

    def _compare_torch(self, member: Member) -> None:
        """No reason to refuse: weights travel alike. But bits may differ (pytorch#197018)."""
        live = (*self._state.roster.workers, *self._state.roster.servers)
        others = (m for m in live if m.torch not in {"", member.torch})
        if member.torch and (other := next(others, None)) is not None:
            fact = f"{member.name} runs torch {member.torch}, {other.name} torch {other.torch}"
            words = f"{fact}: results may differ from a run with one torch in the last bits"
            self._state.note("warning", member.name, words)

    def _supersede(self, slot: int) -> None:
        """A slot is claimed by one process at a time: a new one means that the old one is gone."""
        for server in self._state.roster.servers:
            if server.slot == slot and server.stream is not None:
                where = f"{server.host} (pid {server.pid})"
                fact = f"slot {slot} is {server.name}'s, which runs on {where}"
                raise UsageError(
                    fact, who=server.name, todo="give each server its own state folder"
                )
            if server.slot == slot:
                self._state.bury(server, "came back without its memory")

    def _welcome(self, member: Member, hello: Hello) -> Welcome:
        run, config = self._state.run, self._state.config
        return Welcome(
            member.session,
            member.name,
            run.id,
            run.mode,
            run.seed,
            run.servers,
            config.timing.timeout,
            config.run_dir,
            min(MINOR, hello.minor),
            max(config.workers, len(self._state.roster.workers)),
        )

    def _hear(self, stream: Stream) -> Member | None:
        """None: the stream was closed here before its member noticed."""
        if (member := self._state.roster.on(stream)) is not None:
            member.heard = self._state.now
        return member
