"""The data calls: what an epoch is, who gets which batches, what became of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from hubring_common.errors import HubringError, NotYet, UsageError
from hubring_common.ids import Session
from hubring_common.messages import (
    DataDeclaration,
    Done,
    Ledger,
    LedgerEntry,
    LedgerRequest,
    MemberState,
    Pushed,
    RunState,
    Settle,
    Span,
    Take,
    Taken,
    TakeState,
)
from hubring_coordinator.machine.attendance import Attendance
from hubring_coordinator.machine.epoch import Grant, missing
from hubring_coordinator.machine.events import Answer, Call
from hubring_coordinator.machine.forming import require_equal
from hubring_coordinator.machine.ledger import seq_of
from hubring_coordinator.machine.members import Member
from hubring_coordinator.machine.sharing import Sharing
from hubring_coordinator.machine.state import DataBinding, State
from hubring_coordinator.machine.tasks import Wish

OVER = Taken(TakeState.OVER)
PACES = (1e-6, 1e5)
"""Seconds a batch may take; what a worker says beyond is not believed."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A Take that waits for a silent worker's batches. `since` in seconds."""

    call: Call
    take: Take
    since: float


class Data:
    def __init__(self, state: State, attendance: Attendance) -> None:
        self._state, self._attendance = state, attendance
        self._sharing = Sharing(state)
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
        member = self._attendance.caller(take.session)
        member.pace = _believed(take.batch_seconds)
        taken = self._judge(member, take)
        if taken.state is not TakeState.WAIT or take.ahead:
            return taken
        self.parked.append(Parked(call, take, self._state.now))
        return None

    def settle(self, settle: Settle) -> Done:
        """What is done is done, also where the lease was taken back meanwhile: the shards have
        it. Only then a fenced session hears LeaseLost.
        """
        state = self._state
        done = tuple(pushed.span for pushed in settle.done)
        news = state.tasks.settle(settle.session, done, settle.returned, state.elapsed)
        for pushed, runs in zip(settle.done, news, strict=True):
            self._enter(settle.session, pushed, runs)
            state.run.steps += 0 if pushed.confessed or not runs else _pushes(pushed)
        if settle.done:
            state.touch("run")
            self._attendance.mark_first_step()
        member = self._attendance.caller(settle.session)
        self._sharing.answered(member, settle)
        last = max((pushed.span.epoch for pushed in settle.done), default=-1)
        return Done(state.tasks.whole_below(last) if last >= 0 else 0)

    def ledger(self, request: LedgerRequest) -> Ledger:
        state, number = self._state, request.epoch
        epoch = state.tasks.epochs.get(number)
        if epoch is None:
            return Ledger(number, state.data.batches if state.data else 0)
        aside, spans = tuple(epoch.set_aside()), tuple(missing(epoch))
        return Ledger(number, epoch.batches, state.book.entries(number), spans, aside)

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
        state = self._state
        if state.run.state.is_over:
            return state.ended_error()
        try:
            taken = self._judge(self._attendance.live(parked.take.session), parked.take)
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
            return self._granted(member.granted, take, active)
        if take.ahead and self._sharing.evens_out(member, take):
            return Taken(TakeState.WAIT)
        if spans := self._lease(member, take, self._share(active), state.data.batches):
            member.asked, member.granted = take.seq, spans
            state.roster.touch(member.session)
            return self._granted(spans, take, active)
        if take.ahead:
            return Taken(TakeState.OVER, whole_below=state.tasks.whole_below(take.epoch))
        why = self._silent_holders(member, take.epoch) or self._sharing.ask(member, take)
        return Taken(TakeState.WAIT, why=why) if why else OVER

    def _granted(self, spans: tuple[Span, ...], take: Take, active: int) -> Taken:
        whole_below = self._state.tasks.whole_below(take.epoch)
        return Taken(TakeState.TASK, spans, workers=active, whole_below=whole_below)

    def _share(self, active: int) -> int:
        """Workers to leave batches for: those that are here, and at first those expected."""
        state = self._state
        is_young = state.elapsed - state.run.first_step < state.config.timing.timeout
        return max(active, state.config.workers) if is_young else active

    def _lease(self, member: Member, take: Take, workers: int, batches: int) -> tuple[Span, ...]:
        state = self._state
        wish = Wish(
            member.session,
            take.epoch,
            batches,
            workers,
            state.elapsed,
            member.pace,
            state.rules.epochs_end,
        )
        if take.ahead:
            return state.tasks.take_ahead(wish)
        span = state.tasks.take(wish)
        return (span,) if span else ()

    def _enter(self, session: Session, pushed: Pushed, runs: Iterable[Grant]) -> None:
        """Into the ledger: those of the batches that were not done before."""
        state, member = self._state, self._state.roster.all.get(session)
        for run in runs:
            entry = LedgerEntry(
                run.start,
                run.stop - run.start,
                member.name if member else "",
                session,
                seq_of(pushed, run.start),
                pushed.together,
                pushed.confessed,
                run.taken,
                state.elapsed,
            )
            state.book.enter(pushed.span.epoch, entry)

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


def _pushes(pushed: Pushed) -> int:
    return 1 if pushed.together else pushed.span.count


def _believed(pace: float) -> float:
    """A worker's own word on its speed, kept within reason."""
    return min(max(pace, PACES[0]), PACES[1]) if isfinite(pace) and pace > 0 else 0.0


def _fields(data: DataDeclaration | DataBinding) -> dict[str, str]:
    return {**data.settings, "batches an epoch": str(data.batches)}
