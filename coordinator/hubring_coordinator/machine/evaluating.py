"""The Evaluate call: who has come, who measures what, and who waits for whom."""

from base64 import b64decode
from dataclasses import dataclass

from hubring_common.errors import HubringError
from hubring_common.messages import EvaluationPart, EvaluationState, EvaluationTask, MemberState
from hubring_coordinator.machine import pooling
from hubring_coordinator.machine.attendance import Attendance
from hubring_coordinator.machine.evaluation import Evaluation
from hubring_coordinator.machine.events import Answer, Call
from hubring_coordinator.machine.forming import require_equal
from hubring_coordinator.machine.members import Member, listed
from hubring_coordinator.machine.state import State


@dataclass(frozen=True, slots=True)
class Parked:
    """A part that waits. `since` in seconds."""

    call: Call
    part: EvaluationPart
    since: float


class Evaluating:
    def __init__(self, state: State, attendance: Attendance) -> None:
        self._state, self._attendance = state, attendance
        self.parked: list[Parked] = []

    def take_part(self, call: Call, part: EvaluationPart) -> None:
        """Answered by `answer`. Raises SettingsMismatch where another worker's data differs."""
        member = self._attendance.caller(part.session)
        evaluation = self._state.evaluations.begin(part, member.name)
        there = {**evaluation.settings, "batches": str(evaluation.batches)}
        require_equal({**part.settings, "batches": str(part.batches)}, there, evaluation.by)
        if not (evaluation.is_done or part.session in evaluation.came):
            pooling.require_alike(part.buffers, evaluation.came, member.name)
            evaluation.came[part.session] = part.buffers
        self._state.evaluations.measure(evaluation, part)
        self.parked.append(Parked(call, part, self._state.now))

    def advance(self) -> None:
        if (evaluation := self._state.evaluations.current) is not None:
            self._go_on(evaluation)

    def answer(self) -> None:
        """Whoever can go on; and after a heartbeat the others too, with the reason of the wait."""
        waiting, self.parked = self.parked, []
        for parked in waiting:
            answer = self._judge(parked)
            if answer is None:
                self.parked.append(parked)
            else:
                self._state.effects.append(Answer(parked.call, answer))

    def awaited(self) -> tuple[int, list[Member]]:
        """The evaluation that gathers, and who has not come to it; (0, []): none does."""
        evaluation = self._state.evaluations.current
        if evaluation is None or evaluation.is_open:
            return 0, []
        return evaluation.number, self._missing(evaluation)

    def _go_on(self, evaluation: Evaluation) -> None:
        state = self._state
        live = {worker.session for worker in state.roster.workers}
        for session in evaluation.leases.keys() - live:
            del evaluation.leases[session]
        for session in evaluation.came.keys() - live:
            del evaluation.came[session]
        takers = [w for w in state.roster.in_view if w.state is MemberState.ACTIVE]
        if evaluation.is_open and not takers:
            state.evaluations.abandon(evaluation)
        if not evaluation.is_open and evaluation.came and not self._missing(evaluation):
            state.evaluations.open(evaluation)
        if evaluation.is_open and len(evaluation.measured) == evaluation.batches:
            self._finish(evaluation)

    def _finish(self, evaluation: Evaluation) -> None:
        state = self._state
        state.evaluations.finish(evaluation, state.elapsed, state.run.steps)
        for name, value in evaluation.metrics.items():
            if state.rules.judge(name, value):
                state.touch("rules")
        words = "  ".join(f"{name} {value:.4g}" for name, value in evaluation.metrics.items())
        state.note("evaluated", "", f"evaluation {evaluation.number}: {words}")

    def _missing(self, evaluation: Evaluation) -> list[Member]:
        """Who may still push: the live workers that train and have not come."""
        workers = self._state.roster.in_view
        return [w for w in workers if not w.is_done and w.session not in evaluation.came]

    def _judge(self, parked: Parked) -> EvaluationTask | HubringError | None:
        state, part = self._state, parked.part
        if state.run.state.is_over:
            return state.ended_error()
        try:
            self._attendance.live(part.session)
        except HubringError as error:
            return error
        evaluation = state.evaluations.all[part.number]
        pooled = b64decode(evaluation.pooled) if part.buffers else b""
        if evaluation.is_done:
            metrics = evaluation.metrics
            return EvaluationTask(EvaluationState.DONE, metrics=metrics, buffers=pooled)
        if evaluation.is_open and (batches := evaluation.lease(part.session, len(evaluation.came))):
            start, stop = batches.runs[0]
            return EvaluationTask(EvaluationState.TASK, start, stop - start, buffers=pooled)
        is_due = state.now - parked.since >= state.config.timing.heartbeat
        return EvaluationTask(EvaluationState.WAIT, why=self._why(evaluation)) if is_due else None

    def _why(self, evaluation: Evaluation) -> str:
        roster = self._state.roster
        if not evaluation.is_open:
            missing = listed(self._missing(evaluation))
            return f"{missing} to come to evaluation {evaluation.number}"
        busy = listed([roster.all[session] for session in evaluation.leases])
        return f"{busy} to measure the rest of evaluation {evaluation.number}"
