"""What the run waits for, in words, and since when. Every wait of a run has a name."""

from hubring_common.messages import Role, RunState
from hubring_coordinator.machine.evaluating import Evaluating
from hubring_coordinator.machine.members import listed
from hubring_coordinator.machine.state import State


class Waiting:
    """`watch` it after every event; `since` is when the wait began, or last saw progress."""

    def __init__(self, state: State, evaluating: Evaluating) -> None:
        self._state, self._evaluating = state, evaluating
        self._farthest = self._stage()
        self.subject = ""
        self.since = state.now

    @property
    def words(self) -> str:
        seconds = self._state.now - self.since
        return f"waiting {seconds:.0f} s for {self.subject}" if self.subject else ""

    @property
    def seconds(self) -> float:
        return self._state.now - self.since if self.subject else 0.0

    def watch(self) -> None:
        """In forming only going farther than ever counts as progress: a member that dies and
        comes back for ever must not put off the end of the wait.
        """
        subject, stage = self._subject(), self._stage()
        is_farther = any(now > then for now, then in zip(stage, self._farthest, strict=True))
        self._farthest = tuple(map(max, stage, self._farthest))
        is_forming = self._state.run.state is RunState.FORMING
        if is_farther or (not is_forming and subject != self.subject):
            self.since = self._state.now
        self.subject = subject

    def stuck(self) -> str:
        """Why the work cannot go on with the workers that are here, or ""."""
        state = self._state
        workers, lost = state.roster.workers, state.tasks.first_lost()
        if any(not worker.is_done for worker in workers):
            return ""
        if state.owes_batches and lost is not None:
            batches = f"{len(lost.lost)} batches of epoch {lost.number}"
            by = " and ".join(lost.lost_with)
            return f"{batches} were lost with {by} and no worker is left to train them"
        return "" if workers else f"no worker is left{self._last_words()}"

    @property
    def last_worker(self) -> str:
        """Who came last, live or not."""
        workers = [m.name for m in self._state.roster.all.values() if m.role is Role.WORKER]
        return workers[-1] if workers else ""

    def _last_words(self) -> str:
        gone = [m for m in self._state.roster.all.values() if m.role is Role.WORKER]
        return f" ({gone[-1].name}: {gone[-1].why or 'left'})" if gone else ""

    def _stage(self) -> tuple[int, ...]:
        """How far forming is, in parts that count alone."""
        state = self._state
        told = [w.told.formed for w in state.roster.in_view if w.told.formed is not None]
        return (
            min(len(state.roster.servers), state.run.servers),
            min(len(state.roster.workers), 1),
            int(state.model is not None),
            sum(server.installed for server in state.placed),
            int(any(formed.seed_them for formed in told)),
            int(state.run.seeded_by > 0),
        )

    def _subject(self) -> str:
        match self._state.run.state:
            case RunState.FORMING:
                return self._forming_subject()
            case RunState.TRAINING | RunState.DRAINING:
                return f"a worker: {stuck}" if (stuck := self.stuck()) else self._busy_subject()
            case RunState.QUIET:
                return self._quiet_subject()
            case _:
                return ""

    def _forming_subject(self) -> str:
        state, run = self._state, self._state.run
        servers, workers, placed = state.roster.servers, state.roster.workers, state.placed
        if len(servers) < run.servers:
            here = f"{listed(servers)} {'is' if len(servers) == 1 else 'are'} here"
            missing = run.servers - len(servers)
            return f"{missing} of {run.servers} servers ({here if servers else 'none is here'})"
        if state.chief is None:
            return f"{listed(workers)} to declare a model" if workers else "the first worker"
        if empty := [server for server in placed if not server.installed]:
            return f"{listed(empty)} to take {'its shard' if len(empty) == 1 else 'their shards'}"
        if late := [s for s in placed if s.acked < max(state.chief.since, state.removed_in)]:
            return f"{listed(late)} to admit {state.chief.name}"
        return f"{state.chief.name} to send the first weights"

    def _busy_subject(self) -> str:
        """Who keeps the others, an evaluation, or the drain, waiting."""
        number, missing = self._evaluating.awaited()
        if missing:
            return f"{listed(missing)} to come to evaluation {number}"
        workers, run = self._state.roster.workers, self._state.run
        busy = [worker for worker in workers if not worker.is_done]
        is_awaited = run.state is RunState.DRAINING or len(busy) < len(workers)
        return f"{listed(busy)} to finish" if is_awaited else ""

    def _quiet_subject(self) -> str:
        writer = self._state.roster.all.get(self._state.run.writer)
        if writer is not None and writer.is_live:
            return f"{writer.name} to write the model"
        return f"{listed(self._state.roster.workers)} to leave"
