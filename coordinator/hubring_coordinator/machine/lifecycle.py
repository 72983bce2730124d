"""How a run comes to its end: finishing, leaving, draining, failing, and who goes when."""

from hubring_common.errors import KINDS, Retryable, RunEnded, ScriptFailed, UsageError
from hubring_common.ids import Session
from hubring_common.messages import (
    Done,
    Drain,
    End,
    Finish,
    Leave,
    MemberDrain,
    MemberState,
    Quiet,
    Role,
    RunState,
    Stop,
)
from hubring_coordinator.machine import pooling
from hubring_coordinator.machine.events import Exit
from hubring_coordinator.machine.members import Member
from hubring_coordinator.machine.report import status
from hubring_coordinator.machine.state import State
from hubring_coordinator.machine.waiting import Waiting

PERSONAL = {"ModelMismatch", "SettingsMismatch", "VersionMismatch", "UsageError", "LeaseLost"}
"""Errors that a joiner has with a run that others set up: no reason to end the run."""
WORKING = {RunState.TRAINING, RunState.DRAINING}


class Lifecycle:
    def __init__(self, state: State, waiting: Waiting) -> None:
        self._state, self._waiting = state, waiting
        self._has_exited = False
        self._pooled = b""

    # --- calls ---

    def finish(self, member: Member, finish: Finish) -> Done:
        """Raises SettingsMismatch where its buffers cannot be pooled with the others'."""
        pooling.require_alike(finish.buffers, self._buffers(), member.name)
        member.buffers = finish.buffers
        if member.state is not MemberState.FINISHED:
            member.state = MemberState.FINISHED
            self._state.roster.touch(member.session)
            self._state.tasks.release(member.session)
            self._state.note("done", member.name, f"{member.name} takes no more data")
        return Done()

    def leave(self, member: Member, leave: Leave) -> Done:
        """The first failure is the run's; what it tears down later changes nothing."""
        member.worker = leave.progress or member.worker
        if not leave.kind:
            self._keep_results(member, leave)
            self._state.depart(member, leave.why)
            return Done()
        fails_run = self._fails_run(member, leave.kind)
        self._state.bury(member, f"{leave.kind}: {leave.why}")
        if fails_run:
            who, kind, text = member.name, leave.kind, leave.traceback
            self._state.end(RunState.FAILED, leave.why, who=who, kind=kind, traceback=text)
        return Done()

    def drain_member(self, drain: MemberDrain) -> Done:
        """Raises UsageError where no live worker has that name."""
        workers = {worker.name: worker for worker in self._state.roster.workers}
        if (worker := workers.get(drain.member)) is None:
            fact = f"no live worker is named {drain.member!r}; there are {', '.join(workers)}"
            raise UsageError(fact, todo="name one of these; hubring stop drains them all")
        if not worker.drains:
            worker.drains = drain.why or "asked to leave"
            self._state.roster.touch(worker.session)
            self._state.note("draining", worker.name, f"{worker.name} leaves: {worker.drains}")
        return Done()

    def stop(self, stop: Stop) -> Done:
        run = self._state.run
        if run.state.is_over or (run.state is RunState.QUIET and not stop.at_once):
            return Done()
        run.drained = True
        self._state.touch("run")
        if stop.at_once or run.state is RunState.FORMING:
            self._state.end(RunState.STOPPED, stop.why)
        elif run.state is RunState.TRAINING:
            run.state, run.why = RunState.DRAINING, stop.why
            self._state.note("draining", "", f"run {run.id} is draining: {stop.why}")
        return Done()

    def _keep_results(self, member: Member, leave: Leave) -> None:
        """The chief's metrics and model are the run's; others only add what it lacks."""
        state, run = self._state, self._state.run
        if run.state.is_over:
            return
        is_last = state.roster.workers == [member]
        is_writer = run.writer == member.session
        is_end = run.state in WORKING and is_last and not member.drains
        if is_writer or (is_end and not state.owes_batches):
            run.is_written = True
        ours, theirs = leave.metrics, run.metrics
        run.metrics = {**theirs, **ours} if is_writer else {**ours, **theirs}
        run.model = leave.model if is_writer else run.model or leave.model
        state.touch("run")

    def _fails_run(self, member: Member, kind: str) -> bool:
        """A script's failure does. What its own machine did to a worker is a death like any
        other; a joiner that doesn't fit only goes, unless there is no run but its own.
        """
        if member.state is MemberState.JOINING and kind in PERSONAL:
            return self._is_alone(member)
        return not issubclass(KINDS.get(kind, ScriptFailed), (Retryable, RunEnded))

    def _buffers(self) -> dict[Session, bytes]:
        workers = self._state.roster.workers
        return {worker.session: worker.buffers for worker in workers if worker.buffers}

    def _is_alone(self, member: Member) -> bool:
        bindings = (self._state.model, self._state.data)
        is_bound = any(b is not None and b.session != member.session for b in bindings)
        return self._state.roster.workers == [member] and not is_bound

    # --- rules, applied after every event ---

    def advance(self) -> None:
        run = self._state.run
        if run.state in WORKING:
            self._rest()
        if run.state in {*WORKING, RunState.QUIET}:
            self._complete()
        self._waiting.watch()
        if run.state is RunState.FORMING:
            self._give_up_forming()
        elif run.state in WORKING:
            self._give_up_working()
        self._tell_workers()
        if run.state.is_over:
            self._dismiss()

    def _rest(self) -> None:
        """No push is in flight and none will come: the weights are final."""
        state = self._state
        workers = state.roster.workers
        if workers and all(w.is_done for w in workers) and not state.owes_batches:
            state.run.state = RunState.QUIET
            self._pooled = pooling.mean(self._buffers())
            state.touch("run")
            state.note("quiet", "", f"run {state.run.id} is quiet: its weights are final")

    def _complete(self) -> None:
        """All workers left in order."""
        state, run = self._state, self._state.run
        if state.roster.workers:
            if run.state is RunState.QUIET and not run.writer and not run.is_written:
                run.writer = state.roster.workers[0].session
                state.touch("run")
            return
        if run.is_written:
            state.end(RunState.STOPPED if run.drained else RunState.FINISHED, run.why)
        elif run.drained:
            state.end(RunState.STOPPED, f"{run.why}; no worker was left to write the model")
        elif run.state is RunState.QUIET:
            fact = f"{self._waiting.stuck()} to write the model"
            state.end(RunState.FAILED, fact, who=self._waiting.last_worker, kind="TimedOut")

    def _give_up_forming(self) -> None:
        if self._waiting.seconds >= self._state.config.forming_timeout:
            fact = f"the run did not form: {self._waiting.words}"
            self._state.end(RunState.FAILED, fact, kind="TimedOut")

    def _give_up_working(self) -> None:
        stuck = self._waiting.stuck()
        if stuck and self._waiting.seconds >= 2 * self._state.config.timing.timeout:
            who = self._waiting.last_worker
            self._state.end(RunState.FAILED, stuck, who=who, kind="TimedOut")

    def _tell_workers(self) -> None:
        """What a worker should have been told and was not, on the stream that it has now."""
        run = self._state.run
        for worker in self._state.roster.workers:
            if worker.stream is None:
                continue
            is_draining = run.state is RunState.DRAINING
            if (is_draining or worker.drains) and not worker.told.drain:
                worker.told.drain = True
                alone = not is_draining
                self._state.tell(worker, Drain(worker.drains or run.why, alone))
            is_writer = worker.session == run.writer
            quiet = Quiet(is_writer, self._pooled)
            if run.state is RunState.QUIET and worker.told.quiet != quiet:
                worker.told.quiet = quiet
                self._state.tell(worker, quiet)

    def _dismiss(self) -> None:
        """Workers first; servers when no worker attends, or a lease later; then exit.

        Who does not attend any more has nothing left to hear: the run is over.
        """
        state, lease = self._state, self._state.config.timing.lease
        for member in state.roster.all.values():
            if member.role is Role.WORKER:
                self._say_end(member)
        late = state.now - state.ended
        if not any(w.stream is not None for w in state.roster.workers) or late >= lease:
            for server in state.roster.servers:
                self._say_end(server)
        members = (*state.roster.workers, *state.roster.servers)
        is_empty = not any(member.stream is not None for member in members)
        if (is_empty or late >= 2 * lease) and not self._has_exited:
            self._has_exited = True
            state.effects.append(Exit(status(state, self._waiting)))

    def _say_end(self, member: Member) -> None:
        run = self._state.run
        if member.stream is not None and not member.told.end:
            member.told.end = True
            self._state.tell(member, End(run.state, run.why, run.who, run.kind))
