"""The coordinator's machine, whole: one event in, the effects out.

`Coordinator(config, rows, now)` with the rows of a store is also the restart: members come back
with their sessions and have one lease to do so.
"""

from collections.abc import Iterable
from typing import Any

from hubring_common.errors import HubringError
from hubring_common.messages import (
    DataDeclaration,
    Finish,
    Leave,
    ModelDeclaration,
    RunState,
    Seeded,
    Settle,
    Status,
    StatusRequest,
    Stop,
    Take,
)
from hubring_coordinator.machine.attendance import Attendance
from hubring_coordinator.machine.data import Data
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
    Stream,
    Tick,
)
from hubring_coordinator.machine.forming import Forming
from hubring_coordinator.machine.lifecycle import Lifecycle
from hubring_coordinator.machine.report import status
from hubring_coordinator.machine.state import VACANT, Config, State
from hubring_coordinator.machine.waiting import Waiting


class Coordinator:
    def __init__(self, config: Config, rows: Iterable[Put], now: float) -> None:
        self._state = State(config, rows, now)
        self._attendance = Attendance(self._state)
        self._forming = Forming(self._state)
        self._data = Data(self._state, self._attendance)
        self._waiting = Waiting(self._state)
        self._lifecycle = Lifecycle(self._state, self._waiting)
        self._is_over = self._state.run.state.is_over

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
        self._forming.advance()
        self._lifecycle.advance()
        self._data.advance()
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

    def _attend(self, event: Attached | Beat | OrderAcked | Detached) -> None:
        try:
            match event:
                case Attached(stream, hello):
                    self._attendance.attach(stream, hello)
                case Beat(stream, heartbeat):
                    self._attendance.beat(stream, heartbeat)
                case OrderAcked(stream, order):
                    self._attendance.acked(stream, order)
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
        match request:
            case StatusRequest():
                return self.status()
            case Stop():
                return self._lifecycle.stop(request)
            case Leave(session):
                return self._lifecycle.leave(self._attendance.caller(session), request)
        if self._state.run.state.is_over:
            raise self._state.ended_error()
        match request:
            case Take():
                return self._data.take(call, request)
            case Settle():
                return self._data.settle(request)
        return self._declared(request)

    def _declared(self, request: ModelDeclaration | DataDeclaration | Seeded | Finish) -> Result:
        member = self._attendance.caller(request.session)
        match request:
            case ModelDeclaration():
                return self._forming.declare(member, request)
            case DataDeclaration():
                return self._data.declare(member, request)
            case Seeded():
                return self._forming.mark_seeded(member, request)
            case Finish():
                return self._lifecycle.finish(member)

    # --- invariants ---

    def check(self) -> None:
        state, run = self._state, self._state.run
        state.roster.check()
        state.tasks.check()
        assert all(session < state.next_session for session in state.roster.all)
        holders = state.tasks.holders(max(state.tasks.epochs, default=0))
        takers = {w.session for w in state.roster.workers if not w.is_done}
        assert holders.keys() <= takers, "a lease of someone who takes no more"
        assert all(w.since <= run.view for w in state.roster.in_view), "a view to come"
        self._check_places()
        if run.state is RunState.QUIET:
            assert all(w.is_done for w in state.roster.workers), "quiet, but someone trains"
            assert not state.tasks.is_leased, "quiet, but batches are leased"
        assert not (run.state.is_over and self._data.parked), "a call hangs on a run that is over"

    def _check_places(self) -> None:
        state, run = self._state, self._state.run
        held = [session for session in run.places if session != VACANT]
        assert len(held) == len(set(held)), "a server holds two shards"
        assert len(run.places) in {0, run.servers}
        if run.seeded_by and not run.state.is_over and not run.is_written:
            assert len(held) == run.servers, "a shard's weights are nowhere"
            assert all(state.roster.all[session].is_live for session in held)
