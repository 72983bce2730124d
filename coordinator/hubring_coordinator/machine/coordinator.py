"""The coordinator's machine, whole: one event in, the effects out.

`Coordinator(config, rows, now)` with the rows of a store is also the restart: members come back
with their sessions and have one lease to do so.
"""

from collections.abc import Callable, Iterable
from typing import Any

from hubring_common.errors import HubringError
from hubring_common.messages import (
    DataDeclaration,
    Done,
    EvaluationPart,
    Finish,
    Leave,
    LedgerRequest,
    MemberDrain,
    ModelDeclaration,
    RunState,
    Seeded,
    Settle,
    StacksRequest,
    Status,
    StatusRequest,
    Stop,
    StopRules,
    Take,
)
from hubring_coordinator.machine.attendance import Attendance
from hubring_coordinator.machine.data import Data
from hubring_coordinator.machine.evaluating import Evaluating
from hubring_coordinator.machine.events import (
    Answer,
    Attached,
    Beat,
    Called,
    Close,
    Detached,
    Effect,
    Event,
    OrderAcked,
    Over,
    Put,
    Request,
    Result,
    StacksDumped,
    Stream,
    Tick,
)
from hubring_coordinator.machine.forming import Forming
from hubring_coordinator.machine.lifecycle import Lifecycle
from hubring_coordinator.machine.members import Member
from hubring_coordinator.machine.report import status
from hubring_coordinator.machine.stacks import StackDumps
from hubring_coordinator.machine.state import VACANT, Config, State
from hubring_coordinator.machine.stopping import Stopping
from hubring_coordinator.machine.waiting import Waiting

ANYTIME = {StatusRequest, LedgerRequest, StacksRequest, Stop, Leave}
"""Requests that are answered also when the run is over."""


class Coordinator:
    def __init__(self, config: Config, rows: Iterable[Put], now: float) -> None:
        self._state = State(config, rows, now)
        self._attendance = Attendance(self._state)
        self._forming = Forming(self._state)
        self._data = Data(self._state, self._attendance)
        self._stacks = StackDumps(self._state)
        self._evaluating = Evaluating(self._state, self._attendance)
        self._stopping = Stopping(self._state)
        self._waiting = Waiting(self._state, self._evaluating)
        self._lifecycle = Lifecycle(self._state, self._waiting)
        self._is_over = self._state.run.state.is_over
        self._behaviours = self._all_behaviours()

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Rows first, then what depends on them, in order."""
        self._state.now = now
        match event:
            case Called(call, request):
                self._answer(call, request)
            case Tick():
                self._attendance.tick()
            case _:
                self._attend(event)
        self._evaluating.advance()  # may let a rule hold, and joiners in
        self._forming.advance()
        self._stopping.advance()
        self._lifecycle.advance()
        self._data.advance()
        self._evaluating.answer()
        self._stacks.advance()
        if not self._is_over and self._state.run.state.is_over:
            self._is_over = True
            self._state.effects.insert(0, Over(self.status()))
        return self._state.flush()

    def status(self) -> Status:
        return status(self._state, self._waiting)

    def rows(self) -> dict[tuple[str, str], Any]:
        """What the store should hold, were it read now."""
        return self._state.rows()

    # --- members' streams ---

    def _attend(self, event: Attached | Beat | OrderAcked | StacksDumped | Detached) -> None:
        try:
            match event:
                case Attached(stream, hello):
                    self._attendance.attach(stream, hello)
                case Beat(stream, heartbeat):
                    self._attendance.beat(stream, heartbeat)
                case OrderAcked(stream, order):
                    self._attendance.acked(stream, order)
                case StacksDumped(stream, request, text):
                    self._stacks.hear(stream, request, text)
                case Detached(stream):
                    self._attendance.detach(stream)
        except HubringError as error:
            self._hang_up(event.stream, error)

    def _hang_up(self, stream: Stream, error: HubringError) -> None:
        if (member := self._state.roster.on(stream)) is not None:
            self._state.close(member, error)
        else:
            self._state.effects.append(Close(stream, error))

    # --- calls ---

    def _answer(self, call: int, request: Request) -> None:
        try:
            result = self._result(call, request)
        except HubringError as error:
            self._state.effects.append(Answer(call, error))
            return
        if result is not None:
            self._state.effects.append(Answer(call, result))

    def _result(self, call: int, request: Request) -> Result | None:
        """None: to be answered later. Raises what the caller is refused with."""
        kind = type(request)
        if self._state.run.state.is_over and kind not in ANYTIME:
            raise self._state.ended_error()
        return self._behaviours[kind](call, request)

    def _all_behaviours(self) -> dict[type, Callable[[int, Any], Result | None]]:
        data, forming, lifecycle = self._data, self._forming, self._lifecycle

        def of_member(behave: Callable[[Member, Any], Result | None]) -> Any:
            return lambda _, request: behave(self._attendance.caller(request.session), request)

        return {
            StatusRequest: lambda *_: self.status(),
            LedgerRequest: lambda _, request: data.ledger(request),
            StacksRequest: lambda call, _: self._stacks.ask(call),
            Stop: lambda _, request: lifecycle.stop(request),
            Leave: of_member(lifecycle.leave),
            Take: data.take,
            Settle: lambda _, request: data.settle(request),
            ModelDeclaration: of_member(forming.declare),
            DataDeclaration: of_member(data.declare),
            Seeded: of_member(forming.mark_seeded),
            StopRules: of_member(self._declare_rules),
            EvaluationPart: self._evaluating.take_part,
            MemberDrain: lambda _, request: lifecycle.drain_member(request),
            Finish: of_member(lifecycle.finish),
        }

    def _declare_rules(self, member: Member, declared: StopRules) -> Done:
        done = self._state.rules.declare(declared, member.name)
        self._state.touch("rules")
        return done

    # --- invariants ---

    def check(self) -> None:
        state, run = self._state, self._state.run
        state.roster.check()
        state.tasks.check()
        state.book.check(state.tasks.epochs)
        assert all(session < state.next_session for session in state.roster.all)
        holders = state.tasks.holders(max(state.tasks.epochs, default=0))
        takers = {w.session for w in state.roster.workers if not w.is_done}
        assert holders.keys() <= takers, "a lease of someone who takes no more"
        assert all(w.since <= run.view for w in state.roster.in_view), "a view to come"
        self._check_places()
        if run.state is RunState.QUIET:
            assert all(w.is_done for w in state.roster.workers), "quiet, but someone trains"
            assert not state.tasks.is_leased, "quiet, but batches are leased"
        parked = (*self._data.parked, *self._evaluating.parked)
        assert not (run.state.is_over and parked), "a call hangs on a run that is over"

    def _check_places(self) -> None:
        state, run = self._state, self._state.run
        held = [session for session in run.places if session != VACANT]
        assert len(held) == len(set(held)), "a server holds two shards"
        assert len(run.places) in {0, run.servers}
        if run.seeded_by and not run.state.is_over and not run.is_written:
            assert len(held) == run.servers, "a shard's weights are nowhere"
            assert all(state.roster.all[session].is_live for session in held)
