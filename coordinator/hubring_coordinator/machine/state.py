"""What the parts of the machine share: the durable facts, the members, and what is to be done.

Every change of a durable fact is followed by `touch`; `flush` then makes the rows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hubring_common import plain
from hubring_common.errors import HubringError, LeaseLost, RunEnded
from hubring_common.ids import Lsn, Session, View
from hubring_common.layout import ModelSpec
from hubring_common.messages import MemberState, Role, RunState
from hubring_common.timing import Timing
from hubring_coordinator.machine.chronicle import Chronicle
from hubring_coordinator.machine.epoch import Epoch
from hubring_coordinator.machine.evaluation import Evaluations
from hubring_coordinator.machine.events import Close, Effect, Note, Order, Put, Send
from hubring_coordinator.machine.ledger import Book
from hubring_coordinator.machine.members import Member, Roster
from hubring_coordinator.machine.rules import Rules
from hubring_coordinator.machine.tasks import Tasks

VACANT: Session = 0
"""In a place: no server holds this shard."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the coordinator was told. `forming_timeout` in seconds without progress."""

    run: str
    servers: int
    mode: str = "async"
    seed: int = 0
    timing: Timing = field(default_factory=Timing)
    forming_timeout: float = 120.0
    run_dir: str = ""
    workers: int = 1
    """Workers to expect; any number may come."""


@dataclass(slots=True)
class RunFacts:
    """What of the run is durable, but for the bindings, the members and the epochs."""

    id: str
    servers: int
    mode: str
    seed: int
    state: RunState = RunState.FORMING
    why: str = ""
    who: str = ""
    kind: str = ""
    traceback: str = ""
    view: View = 0
    places: tuple[Session, ...] = ()
    """Shard -> the server that holds it, or VACANT; empty until all could be placed."""
    lsns: tuple[Lsn, ...] = ()
    """Shard -> a version that its weights had; at most a lease old."""
    seeded_by: Session = 0
    drained: bool = False
    writer: Session = 0
    """Who was asked to write the model; 0: nobody yet, or it died."""
    is_written: bool = False
    """The writer left in order; the weights on the servers are needed no more."""
    steps: int = 0
    """Pushes that counted."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    elapsed: float = 0.0
    """Seconds from the run's start to the row's writing."""
    first_step: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelBinding:
    """The run's model and settings, and whose they were."""

    spec: ModelSpec
    settings: Mapping[str, str]
    by: str
    session: Session


@dataclass(frozen=True, slots=True)
class DataBinding:
    batches: int
    settings: Mapping[str, str]
    by: str
    session: Session


class State:
    def __init__(self, config: Config, rows: Iterable[Put], now: float) -> None:
        self.config, self.now = config, now
        self.effects: list[Effect] = []
        self._touched: dict[tuple[str, str], None] = {}
        found: dict[str, dict[str, Any]] = {}
        for row in rows:
            found.setdefault(row.kind, {})[row.key] = row.value
        self._load(found)
        self._makers = self._row_makers()
        self.started = now - self.run.elapsed
        self.ended = now
        self.removed_in: View = self.run.view
        """The view in which a worker was last taken out."""

    def _load(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        counters = found.get("counter", {})
        self.next_session: Session = counters.get("sessions", 1)
        self.boot: int = counters.get("boot", 0) + 1
        self.touch("counter", "boot")
        self.chronicle = Chronicle(found.get("event", {}), lambda n: self.touch("event", n))
        if "run" in found:
            self.run = plain.load(RunFacts, found["run"][""])
        else:
            config = self.config
            self.run = RunFacts(config.run, config.servers, config.mode, config.seed)
            self.touch("run")
            self.touch("counter", "sessions")
        self.model = _load_one(ModelBinding, found, "model")
        self.data = _load_one(DataBinding, found, "data")
        members = (plain.load(Member, row) for row in found.get("member", {}).values())
        by_session = sorted(members, key=lambda m: m.session)
        self.roster = Roster(by_session, lambda session: self.touch("member", session))
        for member in by_session:
            member.heard = self.now  # one lease of grace
        epochs = (Epoch.from_row(int(key), row) for key, row in found.get("epoch", {}).items())
        self.tasks = Tasks(epochs, lambda number: self.touch("epoch", number))
        self.rules = Rules(found.get("rules", {}).get(""))
        self.evaluations = Evaluations(found, self.touch)
        self.book = Book(found.get("ledger", {}), lambda place: self.touch("ledger", place))

    # --- durable rows ---

    def touch(self, kind: str, key: object = "") -> None:
        self._touched[kind, str(key)] = None

    def flush(self) -> list[Effect]:
        """The effects since the last flush; rows first."""
        if ("run", "") in self._touched:
            self.run.elapsed = self.now - self.started
        puts = [Put(kind, key, self._row(kind, key)) for kind, key in self._touched]
        effects, self.effects = self.effects, []
        self._touched.clear()
        return [*puts, *effects]

    def rows(self) -> dict[tuple[str, str], Any]:
        """Every durable row as it should stand in the store."""
        keys = [("run", ""), ("model", ""), ("data", ""), ("rules", "")]
        keys += self.evaluations.keys()
        keys += [("counter", "sessions"), ("counter", "boot")]
        keys += [("event", str(number)) for number in self.chronicle.events]
        keys += [("member", str(session)) for session in self.roster.all]
        keys += [("epoch", str(number)) for number in self.tasks.epochs]
        keys += [("ledger", str(place)) for place in self.book.places()]
        rows = {key: self._row(*key) for key in keys}
        return {key: row for key, row in rows.items() if row is not None}

    def _row(self, kind: str, key: str) -> Any:
        """What is durable under (kind, key) now; None: nothing."""
        return self._makers[kind](key)

    def _row_makers(self) -> dict[str, Callable[[str], Any]]:
        return {
            "run": lambda _: plain.dump(self.run),
            "counter": lambda key: self.boot if key == "boot" else self.next_session,
            "model": lambda _: self.model and plain.dump(self.model),
            "data": lambda _: self.data and plain.dump(self.data),
            "member": lambda key: (found := self.roster.all.get(int(key))) and found.row(),
            "event": lambda key: self.chronicle.row(int(key)),
            "epoch": lambda key: self.tasks.epochs[int(key)].row(),
            "ledger": self.book.row,
            "rules": lambda _: self.rules.row() if self.rules.by else None,
            "evaluation": lambda key: self.evaluations.all[int(key)].row(),
            "measured": self.evaluations.measured_row,
        }

    # --- effects ---

    def tell(self, member: Member, order: Order) -> None:
        if member.stream is not None:
            self.effects.append(Send(member.stream, order))

    def close(self, member: Member, error: HubringError) -> None:
        if member.stream is not None:
            self.effects.append(Close(member.stream, error))
            self.roster.detach(member)

    def note(self, kind: str, who: str, text: str) -> None:
        """A line for the log, and an event for whoever looks."""
        self.effects.append(Note(text))
        self.chronicle.add(self.elapsed, kind, who, text)

    # --- questions ---

    @property
    def elapsed(self) -> float:
        return (self.ended if self.run.state.is_over else self.now) - self.started

    @property
    def chief(self) -> Member | None:
        return next(iter(self.roster.in_view), None)

    @property
    def placed(self) -> list[Member]:
        """The servers that hold shards, in shard order; those of vacant places are left out."""
        found = (self.roster.all.get(session) for session in self.run.places)
        return [server for server in found if server is not None]

    @property
    def owes_batches(self) -> bool:
        """Batches of a dead worker must be trained again. Once the run drains, nobody will."""
        return self.run.state is RunState.TRAINING and self.tasks.first_lost() is not None

    def is_suspect(self, member: Member) -> bool:
        return member.is_suspect(self.now, self.config.timing.heartbeat)

    def ended_error(self) -> RunEnded:
        run = self.run
        why = f": {run.why}" if run.why else ""
        fact = f"run {run.id} is {run.state.name.lower()}{why}"
        return RunEnded(fact, who=run.who, todo="start the cluster again for a new run")

    # --- changes ---

    def new_session(self) -> Session:
        session, self.next_session = self.next_session, self.next_session + 1
        self.touch("counter", "sessions")
        return session

    def change_view(self) -> View:
        self.run.view += 1
        self.touch("run")
        return self.run.view

    def depart(self, member: Member, why: str = "") -> None:
        """A member leaves in order."""
        if member.drains:
            self.tasks.lose(member.session, member.name, in_order=True)
        self.tasks.release(member.session)
        member.left, member.why = True, why
        member.state = MemberState.FINISHED
        self._remove(member)
        self.note("left", member.name, f"{member.name} left" + (f": {why}" if why else ""))

    def bury(self, member: Member, why: str) -> None:
        """A member is dead: its batches are lost, and so are the weights that it held."""
        if not member.is_live:
            return
        lost = self.tasks.lose(member.session, member.name)
        member.state, member.why = MemberState.DEAD, why
        self._remove(member)
        with_it = f"; {lost} batches were lost with it" if lost else ""
        self.note("died", member.name, f"{member.name} is dead: {why}{with_it}")
        if member.role is Role.SERVER:
            self._lose_shard(member, why)

    def expel(self, member: Member, why: str) -> None:
        """Bury it, and tell it so, should it still hear."""
        self.bury(member, why)
        fact = f"{member.name} (session {member.session}) was fenced: {why}"
        self.close(member, LeaseLost(fact, who=member.name, todo="start the worker again"))

    def end(
        self, state: RunState, why: str = "", *, who: str = "", kind: str = "", traceback: str = ""
    ) -> None:
        """The run is over. The first end holds: later ones change nothing."""
        run = self.run
        if run.state.is_over:
            return
        run.state, run.why, run.who, run.kind, run.traceback = state, why, who, kind, traceback
        self.ended = self.now
        self.touch("run")
        outcome = state.name.lower()
        self.note(outcome, who, f"run {run.id} is {outcome}" + (f": {why}" if why else ""))

    def _remove(self, member: Member) -> None:
        self.roster.touch(member.session)
        self.roster.prune()
        if member.since:
            self.removed_in = self.change_view()
        if member.session == self.run.writer and not self.run.is_written:
            self.run.writer = 0
            self.touch("run")

    def _lose_shard(self, server: Member, why: str) -> None:
        run = self.run
        if server.session not in run.places:
            return
        shard = run.places.index(server.session)
        if run.seeded_by and not run.is_written:
            lsn = max(
                [*run.lsns[shard : shard + 1], *(p.version for p in server.shards)], default=0
            )
            fact = f"weights lost at LSN {lsn}: {server.name} {why}"
            self.end(RunState.FAILED, fact, who=server.name, kind="WeightsLost")
        elif not run.state.is_over:
            run.places = tuple(VACANT if s == server.session else s for s in run.places)
            self.touch("run")


def _load_one(kind: Any, found: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    return plain.load(kind, found[name][""]) if name in found else None
