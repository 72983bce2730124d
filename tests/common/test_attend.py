"""A member's life line, against a coordinator that follows the test's script over real gRPC."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

import grpc
import pytest
from common.roads import eventually

from hubring_common import rpc
from hubring_common.attend import PATIENCE, Attendance
from hubring_common.errors import (
    InvalidMessage,
    LeaseLost,
    ModelMismatch,
    RunEnded,
    TimedOut,
    Unreachable,
    VersionMismatch,
)
from hubring_common.messages import Drain, End, Heartbeat, Hello, Role, RunState, ToMember, Welcome
from hubring_common.timing import Timing

TOKEN = "a-token"
TIMING = Timing(0.5)


class Scripted:
    """Puts what comes up into `heard`; sends what the test puts into `say`: a message, an error
    to raise, or None to end the stream.
    """

    def __init__(self, address="127.0.0.1:0"):
        self.heard: SimpleQueue = SimpleQueue()
        self.say: SimpleQueue = SimpleQueue()
        self.server = rpc.make_server(TOKEN, 8)
        rpc.add_control(self.server, "Coordinator", {"Attend": self.attend})
        self.address = f"127.0.0.1:{rpc.bind(self.server, address)}"
        self.server.start()

    def attend(self, requests, context):
        threading.Thread(target=self._read, args=(requests,), daemon=True).start()
        while context.is_active():
            try:
                item = self.say.get(timeout=0.05)
            except Empty:
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def _read(self, requests):
        try:
            for message in requests:
                self.heard.put(message)
        except Exception as error:  # noqa: BLE001 - gRPC's own, at the end of the stream
            self.heard.put(error)
        self.heard.put("ended")

    def next(self, kind):
        """The next message of `kind`, passing over others."""
        while True:
            message = self.heard.get(timeout=5)
            if (found := getattr(message, kind, None)) is not None:
                return found


class Member:
    def __init__(self, address, timing=TIMING, orders=None):
        self.orders, self.lost = SimpleQueue(), SimpleQueue()
        self.channel = rpc.open_channel(address)
        self.attendance = Attendance(
            self.channel,
            TOKEN,
            timing,
            beat=Heartbeat,
            orders=orders or self.orders.put,
            lost=self.lost.put,
        )

    def close(self):
        self.attendance.close()
        self.channel.close()


def welcome(timeout=0.5):
    return ToMember(welcome=Welcome(7, "worker-0", "a-run", "async", 0, 1, timeout))


@pytest.fixture
def coordinator():
    scripted = Scripted()
    yield scripted
    scripted.say.put(None)
    scripted.server.stop(0).wait()


@pytest.fixture
def member(coordinator):
    joined = Member(coordinator.address)
    coordinator.say.put(welcome())
    assert joined.attendance.start(Hello(Role.WORKER)).session == 7
    yield joined
    coordinator.say.put(None)
    joined.close()


def test_hello_first_then_heartbeats(coordinator, member):
    assert coordinator.next("hello") == Hello(Role.WORKER)
    assert coordinator.next("heartbeat") == Heartbeat()
    assert coordinator.next("heartbeat") == Heartbeat()
    assert member.attendance.welcome.name == "worker-0"


def test_heartbeats_follow_the_welcomes_timeout_from_the_first_on(coordinator):
    member = Member(coordinator.address, Timing(100))
    coordinator.say.put(welcome())
    started = time.monotonic()
    member.attendance.start(Hello(Role.WORKER))
    for _ in range(6):
        coordinator.next("heartbeat")
    assert 0.2 < time.monotonic() - started < 5, "one at once, then five, 0.05 s apart"
    coordinator.say.put(None)
    member.close()


def test_orders_come_down_and_acknowledgements_go_up(coordinator, member):
    coordinator.say.put(ToMember(drain=Drain("enough")))
    assert member.orders.get(timeout=5).drain == Drain("enough")
    member.attendance.ack(41)
    assert coordinator.next("acked").order == 41


def test_a_broken_stream_is_opened_again_with_its_session(coordinator, member):
    coordinator.next("hello")
    coordinator.say.put(None)
    assert coordinator.next("hello").session == 7
    coordinator.say.put(welcome())
    coordinator.say.put(ToMember(drain=Drain("still here")))
    assert member.orders.get(timeout=5).drain == Drain("still here")
    assert member.lost.empty()


def test_a_session_that_is_refused_when_it_comes_back_is_lost(coordinator, member):
    coordinator.next("hello")
    coordinator.say.put(None)
    coordinator.next("hello")
    coordinator.say.put(LeaseLost("session 7 was given up"))
    assert isinstance(member.lost.get(timeout=5), LeaseLost)


def test_an_order_that_breaks_ends_the_member_and_its_stream(coordinator):
    member = Member(coordinator.address, orders=lambda _order: 1 / 0)
    coordinator.say.put(welcome())
    member.attendance.start(Hello(Role.SERVER))
    coordinator.say.put(ToMember(drain=Drain("enough")))
    error = member.lost.get(timeout=5)
    assert isinstance(error, RunEnded)
    assert "ZeroDivisionError" in error.fact
    while coordinator.heard.get(timeout=5) != "ended":
        pass
    member.close()
    assert member.lost.empty()


def test_an_order_that_cannot_be_followed_is_lost_with_its_own_error(coordinator):
    def refuse(_order):
        raise ModelMismatch("it does not fit")

    member = Member(coordinator.address, orders=refuse)
    coordinator.say.put(welcome())
    member.attendance.start(Hello(Role.SERVER))
    coordinator.say.put(ToMember(drain=Drain("enough")))
    assert isinstance(member.lost.get(timeout=5), ModelMismatch)
    member.close()


def test_an_error_that_is_not_a_broken_line_is_reported_once(coordinator, member):
    coordinator.say.put(LeaseLost("not heard of for long"))
    assert isinstance(member.lost.get(timeout=5), LeaseLost)
    with pytest.raises(Empty):
        member.lost.get(timeout=0.3)


def test_a_coordinator_that_stays_away_is_given_up(coordinator):
    member = Member(coordinator.address)
    coordinator.say.put(welcome(timeout=0.2))
    member.attendance.start(Hello(Role.WORKER))
    coordinator.server.stop(0).wait()
    started = time.monotonic()
    assert isinstance(member.lost.get(timeout=10), Unreachable)
    assert time.monotonic() - started > (PATIENCE - 1) * 0.2
    member.close()
    assert member.lost.empty()


def test_after_the_end_of_the_run_nothing_is_tried_or_reported(coordinator, member):
    coordinator.next("hello")
    coordinator.say.put(ToMember(end=End(RunState.FINISHED)))
    assert member.orders.get(timeout=5).end is not None
    coordinator.say.put(None)
    with pytest.raises(Empty):
        while True:
            assert getattr(coordinator.heard.get(timeout=0.5), "hello", None) is None
    assert member.lost.empty()


def test_closing_says_a_last_word_and_ends_the_thread(coordinator):
    member = Member(coordinator.address)
    coordinator.say.put(welcome())
    member.attendance.start(Hello(Role.WORKER))
    coordinator.next("hello")
    while not coordinator.heard.empty():
        coordinator.heard.get()
    closing = threading.Thread(target=member.close)
    closing.start()
    assert coordinator.next("heartbeat") == Heartbeat()
    coordinator.say.put(None)
    closing.join(5)
    assert not closing.is_alive()
    assert member.lost.empty()


def test_a_member_that_closes_while_the_coordinator_is_away_does_not_come_back(coordinator, caplog):
    member = Member(coordinator.address)
    coordinator.say.put(welcome(timeout=50.0))
    member.attendance.start(Hello(Role.WORKER))
    coordinator.say.put(None)
    while coordinator.heard.get(timeout=5) != "ended":
        pass
    eventually(lambda: "is away" in caplog.text, "it did not notice")
    member.close()
    assert not member.attendance._thread.is_alive()
    assert member.lost.empty()
    assert coordinator.heard.empty(), "it attended again"


def test_closing_does_not_wait_for_a_coordinator_that_does_not_answer(coordinator, member):
    started = time.monotonic()
    member.close()
    assert time.monotonic() - started < 4
    assert not member.attendance._thread.is_alive()
    assert member.lost.empty()


def test_a_coordinator_that_starts_a_little_later_is_waited_for():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    member = Member(address, Timing(5))
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(member.attendance.start, Hello(Role.WORKER))
        with pytest.raises(TimeoutError):
            joining.result(timeout=0.3)
        coordinator = Scripted(address)
        coordinator.say.put(welcome())
        assert joining.result(timeout=10).session == 7
    coordinator.say.put(None)
    member.close()
    coordinator.server.stop(0).wait()


def test_a_refusal_is_raised_by_start(coordinator):
    member = Member(coordinator.address)
    coordinator.say.put(VersionMismatch("2.0 here, 1.0 there"))
    with pytest.raises(VersionMismatch, match=r"2\.0 here"):
        member.attendance.start(Hello(Role.WORKER))
    member.close()


def test_a_coordinator_that_sends_garbage():
    garbage = grpc.stream_stream_rpc_method_handler(lambda _requests, _context: iter([b"\xff"]))
    service = grpc.method_handlers_generic_handler("hubring.v1.Coordinator", {"Attend": garbage})
    server = rpc.make_server(TOKEN, 2)
    server.add_generic_rpc_handlers((service,))
    member = Member(f"127.0.0.1:{rpc.bind(server, '127.0.0.1:0')}")
    server.start()
    with pytest.raises(InvalidMessage, match="not a ToMember"):
        member.attendance.start(Hello(Role.WORKER))
    member.close()
    server.stop(0).wait()


def test_a_coordinator_that_says_nothing(coordinator):
    member = Member(coordinator.address, Timing(0.2))
    with pytest.raises(TimedOut, match="did not welcome"):
        member.attendance.start(Hello(Role.WORKER))
    member.close()


def test_nobody_there_is_told_within_the_timeout():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    member = Member(address, Timing(0.3))
    with pytest.raises(Unreachable):
        member.attendance.start(Hello(Role.WORKER))
    member.close()
