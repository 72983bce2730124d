"""The edge over real gRPC on loopback, with the members' own end of the stream."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
from coordinator.harness import DATA, SETTINGS, SPEC

from hubring_common import rpc, wire
from hubring_common.attend import ATTEND, Attendance
from hubring_common.clock import MonotonicClock
from hubring_common.errors import (
    Busy,
    HubringError,
    InvalidMessage,
    LeaseLost,
    ModelMismatch,
    Unauthorized,
    VersionMismatch,
)
from hubring_common.layout import ModelSpec
from hubring_common.messages import (
    DataDeclaration,
    Done,
    Finish,
    FromMember,
    Heartbeat,
    Hello,
    Leave,
    MemberState,
    ModelDeclaration,
    Pushed,
    Role,
    RunState,
    Seeded,
    Settle,
    ShardProgress,
    StacksRequest,
    Status,
    StatusRequest,
    Take,
    TakeState,
    ToMember,
    WorkerProgress,
)
from hubring_common.timing import Timing
from hubring_coordinator import service as service_module
from hubring_coordinator.machine.coordinator import Coordinator
from hubring_coordinator.machine.state import Config
from hubring_coordinator.service import THREADS, Service
from hubring_coordinator.shell import Shell
from hubring_coordinator.store import MemoryStore

TOKEN = "a-token"
TIMING = Timing(0.5)


class Rig:
    def __init__(self, servers: int = 1) -> None:
        clock = MonotonicClock()
        config = Config("run-1", servers, timing=TIMING)
        self.exits: SimpleQueue[Status | None] = SimpleQueue()
        self.shell = Shell(
            Coordinator(config, [], clock.now()),
            MemoryStore(),
            clock,
            TIMING,
            on_over=lambda status: None,
            on_exit=self.exits.put,
        )
        self.server = rpc.make_server(TOKEN, THREADS)
        Service(self.shell).add_to(self.server)
        self.address = f"127.0.0.1:{rpc.bind(self.server, '127.0.0.1:0')}"
        self.channel = rpc.open_channel(self.address)
        self.caller = rpc.Caller(self.channel, "Coordinator", TOKEN, "the coordinator")
        self.members: list[Member] = []

    def start(self) -> None:
        self.shell.start()
        self.server.start()

    def close(self) -> None:
        for member in self.members:
            member.attendance.close()
        self.channel.close()
        self.server.stop(grace=0.2).wait()
        self.shell.close()

    def call(self, name: str, request: Any) -> Any:
        return self.caller.call(name, request, 5)

    @property
    def status(self) -> Status:
        return self.call("GetStatus", StatusRequest())

    def server_member(self, slot: int = 0) -> "Member":
        return self._add(Member(self, Hello(Role.SERVER, slot=slot, endpoints=("grpc:h:1",))))

    def worker(self) -> "Member":
        return self._add(Member(self, Hello(Role.WORKER)))

    def _add(self, member: "Member") -> "Member":
        self.members.append(member)
        return member

    def member(self, name: str):
        return next(m for m in self.status.members if m.name == name)

    def raw(self, *messages: FromMember, token: str = TOKEN) -> Any:
        """A stream whose sender stays open after `messages`."""
        opened = self.channel.stream_stream(ATTEND)
        return opened(held_open(messages), metadata=rpc.metadata(token))


def held_open(messages: tuple[FromMember, ...]) -> Iterator[bytes]:
    yield from map(wire.encode, messages)
    threading.Event().wait(5)


class Member:
    """A member's end as members have it; a server's acknowledges whatever it is told."""

    def __init__(self, rig: Rig, hello: Hello) -> None:
        self.rig, self.is_server = rig, hello.role is Role.SERVER
        self.orders: SimpleQueue[ToMember] = SimpleQueue()
        self.lost: SimpleQueue[HubringError] = SimpleQueue()
        self.pushes = 0
        self.attendance = Attendance(
            rig.channel, TOKEN, TIMING, beat=self.beat, orders=self.hear, lost=self.lost.put
        )
        self.welcome = self.attendance.start(hello)
        self.session = self.welcome.session

    def beat(self) -> Heartbeat:
        if self.is_server:
            return Heartbeat(shards=(ShardProgress(0, 80, version=self.pushes),))
        return Heartbeat(WorkerProgress(pushes=self.pushes))

    def hear(self, message: ToMember) -> None:
        order = message.install or message.members
        if order is not None:
            self.attendance.ack(order.order)
        self.orders.put(message)

    def next(self, what: str) -> Any:
        """The next order of this name; others before it are passed over."""
        while True:
            if (found := getattr(self.orders.get(timeout=5), what)) is not None:
                return found


@contextmanager
def running(servers: int = 1) -> Iterator[Rig]:
    rig = Rig(servers)
    rig.start()
    try:
        yield rig
    finally:
        rig.close()


SEQS = itertools.count(1)


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline, f"not within 5 s: {what}"
        time.sleep(0.01)


def train(rig: Rig, worker: Member) -> int:
    """Takes and settles until epoch 0 is over. Returns the batches trained."""
    count = 0
    while (
        taken := rig.call("TakeTask", Take(worker.session, 0, next(SEQS)))
    ).state is TakeState.TASK:
        rig.call("SettleTasks", Settle(worker.session, done=(Pushed(taken.spans[0]),)))
        count += taken.spans[0].count
    return count


def seeded(rig: Rig) -> tuple[Member, Member]:
    server, worker = rig.server_member(), rig.worker()
    rig.call("DeclareModel", ModelDeclaration(worker.session, SPEC, SETTINGS))
    rig.call("DeclareData", DataDeclaration(worker.session, DATA, 20))
    assert worker.next("formed").seed_them
    assert rig.call("MarkSeeded", Seeded(worker.session, (1,))) == Done()
    assert worker.next("formed").seeded
    return server, worker


def test_the_stacks_of_all():
    with running() as rig:
        rig.server_member()
        rig.worker()
        shown = rig.call("GetStacks", StacksRequest()).members
    assert [each.member for each in shown] == ["coordinator", "server-0", "worker-0"]
    assert all("test_the_stacks_of_all" in each.text for each in shown)  # one process here


def test_a_whole_run():
    with running() as rig:
        server, worker = seeded(rig)
        assert train(rig, worker) == 20
        worker.pushes = 20
        eventually(
            lambda: getattr(rig.member("worker-0").worker, "pushes", 0) == 20,
            "the heartbeat arrives",
        )
        rig.call("FinishWork", Finish(worker.session))
        assert worker.next("quiet").write_model
        leave = Leave(worker.session, metrics={"accuracy": 0.9}, model="m.safetensors")
        rig.call("LeaveRun", leave)
        assert server.next("end").state is RunState.FINISHED
        worker.attendance.close()
        server.attendance.close()
        last = rig.exits.get(timeout=5)
        assert (last.model, last.metrics) == ("m.safetensors", {"accuracy": 0.9})
        assert last.epochs[0].done == 20
        assert last.first_step_seconds > 0


def test_errors_arrive_as_what_they_are():
    with running() as rig:
        _, _ = seeded(rig)
        joiner = rig.worker()
        other = ModelSpec(SPEC.params, "Adam")
        with pytest.raises(ModelMismatch, match="the optimizer is Adam here but SGD"):
            rig.call("DeclareModel", ModelDeclaration(joiner.session, other))
        with pytest.raises(LeaseLost, match="session 99 is not known here"):
            rig.call("TakeTask", Take(99, 0, next(SEQS)))


def test_a_refused_hello_ends_the_stream_with_its_reason():
    with running() as rig:
        call = rig.raw(FromMember(hello=Hello(Role.WORKER, major=9)))
        with pytest.raises(VersionMismatch), rpc.calling("the coordinator"):
            next(call)


@pytest.mark.parametrize(
    "messages",
    [
        (FromMember(heartbeat=Heartbeat()),),
        (FromMember(),),
        (FromMember(hello=Hello(Role.WORKER)), FromMember(hello=Hello(Role.WORKER))),
    ],
)
def test_a_stream_begins_with_one_hello(messages):
    with running() as rig:
        call = rig.raw(*messages)
        with pytest.raises(InvalidMessage), rpc.calling("the coordinator"):
            for _ in call:
                pass


def test_the_token_is_judged_first():
    with running() as rig:
        call = rig.raw(FromMember(hello=Hello(Role.WORKER)), token="wrong")
        with pytest.raises(Unauthorized), rpc.calling("the coordinator"):
            next(call)
        stranger = rpc.Caller(rig.channel, "Coordinator", "wrong", "the coordinator")
        with pytest.raises(Unauthorized):
            stranger.call("GetStatus", StatusRequest(), 5)
        assert rig.status.members == ()


def test_a_broken_stream_is_taken_up_with_the_same_session():
    with running() as rig:
        _, worker = seeded(rig)
        worker.attendance._call.cancel()
        assert worker.next("formed").seeded, "what it may have missed is said again"
        assert worker.attendance.welcome.session == worker.session
        assert rig.member("worker-0").state is MemberState.ACTIVE
        assert train(rig, worker) == 20


def test_a_silent_member_loses_its_lease_and_hears_of_it():
    with running() as rig:
        call = rig.raw(FromMember(hello=Hello(Role.WORKER)))
        next(call)
        fenced = pytest.raises(LeaseLost, match=r"worker-0 \(session 1\) was fenced")
        with fenced, rpc.calling("the coordinator"):
            next(call)
        assert rig.member("worker-0").state is MemberState.DEAD


def test_a_parked_take_waits_a_heartbeat_at_most():
    with running() as rig:
        server, worker = seeded(rig)
        call = rig.raw(FromMember(hello=Hello(Role.WORKER)))
        other = wire.decode(ToMember, next(call)).welcome.session
        rig.call("DeclareModel", ModelDeclaration(other, SPEC, SETTINGS))
        assert wire.decode(ToMember, next(call)).formed.seeded
        held = rig.call("TakeTask", Take(other, 0, next(SEQS))).spans[0]
        call.cancel()
        answers = []
        while not answers or answers[-1].state is not TakeState.WAIT:
            answers.append(rig.call("TakeTask", Take(worker.session, 0, next(SEQS))))
        assert answers[-1].why.startswith("worker-1 (last heard 0 s ago) holds")
        eventually(lambda: rig.member("worker-1").state is MemberState.DEAD, "its lease ends")
        again = rig.call("TakeTask", Take(worker.session, 0, next(SEQS))).spans[0]
        assert again.first == held.first
        assert server.lost.empty()


def test_members_beyond_the_limit_are_told_to_come_later(monkeypatch):
    monkeypatch.setattr(service_module, "MEMBERS", 1)
    with running() as rig:
        first = rig.worker()
        second = rig.raw(FromMember(hello=Hello(Role.WORKER)))
        with pytest.raises(Busy), rpc.calling("the coordinator"):
            next(second)
        first.attendance.close()
        eventually(lambda: rig.member("worker-0").last_heard >= 0, "the place is free again")
        third = rig.worker()
        assert third.session > first.session


def test_streams_leave_no_thread_behind():
    with running() as rig:
        for _ in range(5):
            member = rig.worker()
            member.attendance.close()
        streams = rig.shell._outboxes
        eventually(lambda: not streams, "every stream is forgotten")
    names = {"attend", "coordinator"}
    eventually(
        lambda: names.isdisjoint(thread.name for thread in threading.enumerate()),
        "the readers and the machine's thread end",
    )
