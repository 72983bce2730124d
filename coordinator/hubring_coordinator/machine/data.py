"""The data calls: what an epoch is, who gets which batches, what became of them."""

from dataclasses import dataclass

from hubring_common.errors import HubringError, NotYet, UsageError
from hubring_common.messages import (
    DataDeclaration,
    Done,
    MemberState,
    RunState,
    Settle,
    Take,
    Taken,
    TakeState,
)
from hubring_coordinator.machine.attendance import Attendance
from hubring_coordinator.machine.events import Answer, Call
from hubring_coordinator.machine.forming import require_equal
from hubring_coordinator.machine.members import Member
from hubring_coordinator.machine.state import DataBinding, State

OVER = Taken(TakeState.OVER)


@dataclass(frozen=True, slots=True)
class Parked:
    """A Take that waits for a silent worker's batches. `since` in seconds."""

    call: Call
    take: Take
    since: float


class Data:
    def __init__(self, state: State, attendance: Attendance) -> None:
        self._state, self._attendance = state, attendance
        self.parked: list[Parked] = []

    def declare(self, member: Member, declared: DataDeclaration) -> Done:
        """Raises SettingsMismatch, naming the field that differs."""
        state = self._state
        if state.data is None:
            state.data = DataBinding(
                declared.batches, declared.settings, member.name, member.session
            )
            state.touch("data")
        require_equal(_fields(declared), _fields(state.data), state.data.by)
        return Done()

    def take(self, call: Call, take: Take) -> Taken | None:
        """None: parked, to be answered by `advance`."""
        taken = self._judge(self._attendance.caller(take.session), take)
        if taken.state is not TakeState.WAIT:
            return taken
        self.parked.append(Parked(call, take, self._state.now))
        return None

    def settle(self, settle: Settle) -> Done:
        """What is done is done, also where the lease was taken back meanwhile: the shards have
        it. Only then a fenced session hears LeaseLost.
        """
        self._state.tasks.settle(settle.session, settle.done, settle.returned)
        if settle.done:
            self._attendance.mark_first_step()
        self._attendance.caller(settle.session)
        return Done()

    def advance(self) -> None:
        """Answer the parked: at once where something changed, else after one heartbeat."""
        waiting, self.parked = self.parked, []
        for parked in waiting:
            result = self._judge_again(parked)
            if result is None:
                self.parked.append(parked)
            else:
                self._state.effects.append(Answer(parked.call, result))

    def _judge_again(self, parked: Parked) -> Taken | HubringError | None:
        state, session = self._state, parked.take.session
        if state.run.state.is_over:
            return state.ended_error()
        member = state.roster.all.get(session)
        try:
            if member is None or not member.is_live:
                member = self._attendance.caller(session)  # raises LeaseLost
            taken = self._judge(member, parked.take)
        except HubringError as error:
            return error
        is_due = state.now - parked.since >= state.config.timing.heartbeat
        return taken if taken.state is not TakeState.WAIT or is_due else None

    def _judge(self, member: Member, take: Take) -> Taken:
        state = self._state
        self._require_may_take(member)
        if state.data is None:
            raise UsageError("no worker has said what the data is", todo="call DeclareData first")
        if state.run.state is not RunState.TRAINING:
            return OVER
        active = sum(w.state is MemberState.ACTIVE for w in state.roster.workers)
        if take.seq == member.asked:  # its answer was lost
            return Taken(TakeState.TASK, member.granted, workers=active)
        span = state.tasks.take(member.session, take.epoch, state.data.batches, active)
        if span is not None:
            member.asked, member.granted = take.seq, span
            state.roster.touch(member.session)
            return Taken(TakeState.TASK, span, workers=active)
        why = self._silent_holders(member, take.epoch)
        return Taken(TakeState.WAIT, why=why) if why else OVER

    def _require_may_take(self, member: Member) -> None:
        if member.state is MemberState.JOINING:
            fact = f"{member.name} was not told yet that the run formed"
            raise NotYet(fact, who="the coordinator", todo="wait for Formed, then ask again")
        if member.is_done:
            fact = f"{member.name} said that it takes no more data"
            raise UsageError(fact, who=member.name, todo="iterate the loader before the run ends")

    def _silent_holders(self, asking: Member, epoch: int) -> str:
        """The others that hold batches up to `epoch` and may be dead; their batches may come
        back, so the epoch is not over.
        """
        state = self._state
        words = []
        for session, count in state.tasks.holders(epoch).items():
            holder = state.roster.all[session]
            if holder is not asking and state.is_suspect(holder):
                heard = f"last heard {state.now - holder.heard:.0f} s ago"
                words.append(f"{holder.name} ({heard}) holds {count} batches")
        return " and ".join(words)


def _fields(data: DataDeclaration | DataBinding) -> dict[str, str]:
    return {**data.settings, "batches an epoch": str(data.batches)}
