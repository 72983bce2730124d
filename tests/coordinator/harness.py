"""A coordinator's machine with members moved by hand, and a store that it must agree with."""

import json
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain

from hubring_common.errors import HubringError
from hubring_common.ids import BatchKey
from hubring_common.layout import ModelSpec, ParamSpec
from hubring_common.messages import (
    DataDeclaration,
    Finish,
    Formed,
    Heartbeat,
    Hello,
    Install,
    Leave,
    Members,
    ModelDeclaration,
    Pushed,
    Role,
    RunState,
    Seeded,
    Settle,
    ShardProgress,
    Span,
    Status,
    StatusRequest,
    Stop,
    Take,
    Taken,
    Welcome,
    WorkerProgress,
)
from hubring_common.timing import Timing
from hubring_coordinator.machine import events
from hubring_coordinator.machine.coordinator import Coordinator
from hubring_coordinator.machine.events import Put
from hubring_coordinator.machine.state import Config

SPEC = ModelSpec((ParamSpec("fc.weight", (10, 256), (256, 1), "float32", 0),), "SGD")
SETTINGS = {"optimizer": "SGD"}
DATA = {"batch_size": "32", "seed": "1"}


class Member:
    """One process: it hears what comes down its stream; it answers only when told to."""

    def __init__(self, cluster: "Cluster", hello: Hello) -> None:
        self.cluster, self.hello = cluster, hello
        self.session, self.name, self.takes = 0, "", 0
        self.attach(hello)

    def attach(self, hello: Hello) -> None:
        self.stream = self.cluster.new_number()
        self.cluster.do(events.Attached(self.stream, hello))
        if welcome := self.last(Welcome):
            self.session, self.name = welcome.session, welcome.name

    def reattach(self) -> None:
        fields = {name: getattr(self.hello, name) for name in Hello.__slots__}
        self.attach(Hello(**{**fields, "session": self.session}))

    def detach(self) -> None:
        self.cluster.do(events.Detached(self.stream))

    @property
    def heard(self) -> list[events.Order]:
        return self.cluster.sent[self.stream]

    def last(self, kind: type) -> events.Order | None:
        return next((order for order in reversed(self.heard) if isinstance(order, kind)), None)

    @property
    def error(self) -> HubringError | None:
        return self.cluster.closed.get(self.stream)

    def beat(self, pushes: int = 0, version: int = 0) -> None:
        if self.hello.role is Role.WORKER:
            heartbeat = Heartbeat(WorkerProgress(pushes=pushes))
        else:
            heartbeat = Heartbeat(shards=(ShardProgress(shard=0, version=version),))
        self.cluster.do(events.Beat(self.stream, heartbeat))

    # --- a server ---

    def ack(self) -> None:
        """Acknowledge everything so far."""
        for order in tuple(self.heard):
            if isinstance(order, (Install, Members)):
                self.cluster.do(events.OrderAcked(self.stream, order.order))

    # --- a worker ---

    def declare(self, spec: ModelSpec = SPEC, settings: dict[str, str] = SETTINGS):
        return self.cluster.call(ModelDeclaration(self.session, spec, settings))

    def declare_data(self, batches: int = 100, settings: dict[str, str] = DATA):
        return self.cluster.call(DataDeclaration(self.session, settings, batches))

    def seeded(self, digests: Iterable[int] | None = None):
        digests = range(self.cluster.config.servers) if digests is None else digests
        return self.cluster.call(Seeded(self.session, tuple(digests)))

    def take(self, epoch: int = 0, **how) -> Taken | HubringError | None:
        return self.cluster.call(self.new_take(epoch, **how))

    def new_take(self, epoch: int = 0, pace: float = 0.0, *, ahead: bool = False) -> Take:
        self.takes += 1
        return Take(self.session, epoch, self.takes, pace, ahead)

    def settle(self, *done: Span, returned: Iterable[Span] = (), recall: int = 0):
        pushed = tuple(map(Pushed, done))
        return self.cluster.call(Settle(self.session, pushed, tuple(returned), recall))

    def train(self, epoch: int = 0) -> list[Span]:
        """Take and settle until the epoch is over here."""
        spans = []
        while (taken := self.take(epoch)) is not None and taken.spans:
            self.settle(taken.spans[0])
            spans.append(taken.spans[0])
        return spans

    def finish(self):
        return self.cluster.call(Finish(self.session))

    def leave(self, kind: str = "", why: str = "", **more):
        return self.cluster.call(Leave(self.session, kind, why, **more))


class Cluster:
    """Checks after each event that the machine's invariants hold, that rows come before what
    depends on them, and that the rows so far are what the machine would write anew.
    """

    def __init__(self, servers: int = 1, timeout: float = 10.0, **config) -> None:
        self.config = Config("run-1", servers, timing=Timing(timeout), **config)
        self.now = 0.0
        self.rows: dict[tuple[str, str], object] = {}
        self.machine = Coordinator(self.config, [], self.now)
        self.sent: dict[int, list[events.Order]] = defaultdict(list)
        self.closed: dict[int, HubringError] = {}
        self.answers: dict[int, object] = {}
        self.overs: list[events.Over] = []
        self.exits = 0
        self.notes: list[str] = []
        self.hubs: list[Member] = []
        self._number = 0

    def new_number(self) -> int:
        self._number += 1
        return self._number

    # --- events ---

    def do(self, event: events.Event) -> list[events.Effect]:
        effects = self.machine.handle(event, self.now)
        self.commit(effects)
        for effect in effects:
            self._perform(effect)
        self.check()
        return effects

    def call(self, request: events.Request) -> object:
        """The answer, or None where it is parked: `answers[last_call]` gets it later."""
        self.last_call = self.new_number()
        self.do(events.Called(self.last_call, request))
        return self.answers.get(self.last_call)

    def stop(self, why: str = "enough", *, at_once: bool = False):
        return self.call(Stop(why, at_once))

    def wait(self, seconds: float, beating: Iterable[Member] = ()) -> None:
        """Let time pass in half heartbeats, `beating` members being heard of."""
        beating = tuple(beating)
        for _ in range(round(seconds / 0.5)):
            self.now += 0.5
            for member in beating:
                member.beat()
            self.do(events.Tick())

    def commit(self, effects: list[events.Effect]) -> None:
        kinds = [isinstance(effect, Put) for effect in effects]
        assert kinds == sorted(kinds, reverse=True), "a row comes after what depends on it"
        for put in (effect for effect in effects if isinstance(effect, Put)):
            if put.value is None:
                self.rows.pop((put.kind, put.key), None)
            else:
                self.rows[put.kind, put.key] = json.loads(json.dumps(put.value))

    def restart(self) -> None:
        """The coordinator was killed and comes back; every stream is gone."""
        rows = [Put(kind, key, value) for (kind, key), value in self.rows.items()]
        self.machine = Coordinator(self.config, rows, self.now)
        self.do(events.Tick())

    def check(self) -> None:
        self.machine.check()
        assert self.machine.rows() == self.rows, "a durable change that was not written"

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Send(stream, order):
                assert stream not in self.closed
                self.sent[stream].append(order)
            case events.Close(stream, error):
                self.closed[stream] = error
            case events.Answer(call, result):
                assert call not in self.answers, "answered twice"
                self.answers[call] = result
            case events.Over():
                self.overs.append(effect)
            case events.Exit():
                self.exits += 1
            case events.Note(text):
                self.notes.append(text)

    # --- members ---

    def server(self, slot: int = 0, **hello) -> Member:
        endpoints = (f"grpc:server-{slot}:1",)
        member = Member(self, Hello(Role.SERVER, slot=slot, endpoints=endpoints, **hello))
        self.hubs.append(member)
        return member

    def worker(self, **hello) -> Member:
        return Member(self, Hello(Role.WORKER, **hello))

    @property
    def status(self) -> Status:
        return self.call(StatusRequest())

    @property
    def state(self) -> RunState:
        return self.status.state

    def why(self, member: Member) -> str:
        return next(m.why for m in self.status.members if m.session == member.session)

    def member_state(self, member: Member):
        return next(m.state for m in self.status.members if m.session == member.session)


def keys_of(spans: Iterable[Span]) -> list[BatchKey]:
    return list(chain.from_iterable(span.keys() for span in spans))


def training(servers: int = 1, workers: int = 1, batches: int = 100, **config):
    """A run that trains: (cluster, servers, workers)."""
    cluster = Cluster(servers, **config)
    hubs = [cluster.server(slot) for slot in range(servers)]
    crew = [cluster.worker() for _ in range(workers)]
    for worker in crew:
        worker.declare()
        worker.declare_data(batches)
    for hub in hubs:
        hub.ack()
    assert crew[0].last(Formed).seed_them
    crew[0].seeded()
    assert cluster.state is RunState.TRAINING
    return cluster, hubs, crew
