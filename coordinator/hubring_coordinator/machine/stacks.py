"""The members' Python stacks, asked for down their streams. A call waits for all of them, or for
half a lease; who did not answer by then is named. Nothing of it is durable.
"""

from dataclasses import dataclass, field

from hubring_common.bounded import STACKS_LIMIT, cut
from hubring_common.errors import Busy
from hubring_common.ids import Session
from hubring_common.messages import DumpStacks, MemberStacks, Stacks
from hubring_coordinator.machine.events import Answer, Call, Stream
from hubring_coordinator.machine.members import Member
from hubring_coordinator.machine.state import State

AT_ONCE = 4
"""Calls that wait at the same time; each makes every member write its stacks."""
ANSWER = 3 << 20
"""Bytes of all stacks in one answer, below gRPC's limit of a message."""


@dataclass(slots=True)
class Asked:
    """One call. Its number is the request's, too. `since` in seconds."""

    call: Call
    since: float
    members: tuple[Member, ...]
    sent: dict[Session, Stream] = field(default_factory=dict)
    texts: dict[Session, str] = field(default_factory=dict)


class StackDumps:
    def __init__(self, state: State) -> None:
        self._state = state
        self.parked: list[Asked] = []

    def ask(self, call: Call) -> Stacks | None:
        """None: parked, to be answered by `advance`. Raises Busy."""
        if len(self.parked) >= AT_ONCE:
            raise Busy(f"{AT_ONCE} others wait for the stacks already", todo="try again")
        roster = self._state.roster
        members = (*roster.servers, *roster.workers)
        self.parked.append(Asked(call, self._state.now, members))
        return None

    def hear(self, stream: Stream, request: int, text: str) -> None:
        """A member's stacks. Late ones are nobody's any more."""
        if (member := self._state.roster.on(stream)) is None:
            return
        member.heard = self._state.now
        for asked in self.parked:
            if asked.call == request and member in asked.members:
                limit = min(STACKS_LIMIT, ANSWER // len(asked.members))
                asked.texts[member.session] = cut(text, limit)

    def advance(self) -> None:
        """Ask whoever was not asked on the stream that it has now; answer what is complete."""
        waiting, self.parked = self.parked, []
        for asked in waiting:
            missing = [m for m in asked.members if self._owes(asked, m)]
            if missing and self._state.now - asked.since < self._state.config.timing.lease / 2:
                self._send(asked, missing)
                self.parked.append(asked)
            else:
                self._state.effects.append(Answer(asked.call, self._answer(asked)))

    def _send(self, asked: Asked, members: list[Member]) -> None:
        for member in members:
            if member.stream is not None and asked.sent.get(member.session) != member.stream:
                asked.sent[member.session] = member.stream
                self._state.tell(member, DumpStacks(asked.call))

    def _answer(self, asked: Asked) -> Stacks:
        return Stacks(tuple(self._of(asked, member) for member in asked.members))

    def _of(self, asked: Asked, member: Member) -> MemberStacks:
        text = asked.texts.get(member.session)
        if text is None:
            return MemberStacks(member.name, why=self._silence(asked, member))
        return MemberStacks(member.name, text)

    def _owes(self, asked: Asked, member: Member) -> bool:
        return member.is_live and member.session not in asked.texts

    def _silence(self, asked: Asked, member: Member) -> str:
        if not member.is_live:
            return f"it is gone: {member.why or 'it left'}"
        now, broken = self._state.now, "" if member.stream is not None else "its stream is broken, "
        heard = f"last heard {now - member.heard:.1f} s ago"
        return f"{broken}no answer for {now - asked.since:.1f} s, {heard}"
