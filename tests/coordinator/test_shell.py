"""The thread around the machine: one transaction a batch, rows before words, fail-stop."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import pytest

from hubring_common.clock import ManualClock, MonotonicClock
from hubring_common.errors import Busy, HubringError, TimedOut, Unreachable
from hubring_common.messages import Done, Hello, Role, RunState, Status, StatusRequest, Stop
from hubring_common.timing import Timing
from hubring_coordinator.machine.coordinator import Coordinator
from hubring_coordinator.machine.events import Attached, Put
from hubring_coordinator.machine.state import Config
from hubring_coordinator.shell import Shell
from hubring_coordinator.store import MemoryStore

TIMING = Timing(0.5)


class Recorded(MemoryStore):
    """Counts its commits; before each it waits for `open`, where a test closes that."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0
        self.open = threading.Event()
        self.open.set()
        self.error: HubringError | None = None

    def commit(self, puts: Sequence[Put]) -> None:
        assert self.open.wait(5)
        if self.error is not None:
            raise self.error
        self.commits += 1
        super().commit(puts)


class Rig:
    def __init__(self, clock) -> None:
        self.store = Recorded()
        self.overs: SimpleQueue[Status] = SimpleQueue()
        self.exits: SimpleQueue[Status | None] = SimpleQueue()
        machine = Coordinator(Config("run-1", 1, timing=TIMING), [], clock.now())
        self.shell = Shell(
            machine,
            self.store,
            clock,
            TIMING,
            on_over=self.overs.put,
            on_exit=self.exits.put,
        )


@contextmanager
def running(clock=None) -> Iterator[Rig]:
    rig = Rig(clock or MonotonicClock())
    rig.shell.start()
    try:
        yield rig
    finally:
        rig.store.open.set()
        rig.shell.close()


def join(shell: Shell, role: Role = Role.WORKER):
    outbox = shell.open_stream()
    shell.post(Attached(outbox.stream, Hello(role)))
    return outbox


def test_a_call_is_answered():
    with running() as rig:
        status = rig.shell.call(StatusRequest())
        assert (status.run, status.state) == ("run-1", RunState.FORMING)


def test_what_waits_in_the_mailbox_shares_one_transaction():
    rig = Rig(ManualClock())
    outboxes = [join(rig.shell) for _ in range(50)]
    rig.shell.start()
    for number, outbox in enumerate(outboxes):
        assert outbox.queue.get(timeout=5).welcome.session == number + 1
    assert rig.store.commits == 1
    rig.shell.close()


def test_nothing_is_said_before_it_is_durable():
    with running(ManualClock()) as rig:
        rig.shell.call(StatusRequest())
        rig.store.open.clear()
        outbox = join(rig.shell)
        assert outbox.queue.empty()
        rig.store.open.set()
        assert outbox.queue.get(timeout=5).welcome.name == "worker-0"


def test_a_store_that_fails_ends_the_coordinator_unsaid():
    rig = Rig(MonotonicClock())
    rig.store.error = Busy("the disk is full")
    outbox = join(rig.shell)
    rig.shell.start()
    assert rig.exits.get(timeout=5) is None
    assert outbox.queue.get(timeout=5) is None, "the stream ends without a welcome"
    assert rig.shell.failure is rig.store.error
    with pytest.raises(Unreachable):
        rig.shell.call(StatusRequest())
    rig.shell.close()


def test_calls_under_way_end_with_the_shell():
    with running() as rig:
        rig.store.open.clear()
        failed: SimpleQueue[HubringError] = SimpleQueue()
        thread = threading.Thread(target=lambda: failed.put(catch(rig.shell)))
        thread.start()
        rig.store.error = Busy("the disk is full")
        rig.store.open.set()
        error = failed.get(timeout=5)
        thread.join()
        assert isinstance(error, (Busy, Unreachable))


def catch(shell: Shell) -> HubringError | None:
    try:
        shell.call(Stop("now", at_once=True))
    except HubringError as error:
        return error
    return None


def test_a_machine_that_does_not_answer_in_time_is_named():
    with running(ManualClock()) as rig:
        rig.shell.call(StatusRequest())
        rig.store.open.clear()
        join(rig.shell)
        with pytest.raises(TimedOut, match="no answer to StatusRequest"):
            rig.shell.call(StatusRequest())


def test_time_passes_without_events():
    clock = ManualClock()
    with running(clock) as rig:
        outbox = join(rig.shell)
        assert outbox.queue.get(timeout=5).welcome is not None
        for _ in range(7):
            clock.advance(0.1)
            rig.shell.call(StatusRequest())
        (member,) = rig.shell.call(StatusRequest()).members
        assert member.why == "not heard for 0.6 s"
        assert isinstance(outbox.queue.get(timeout=5), HubringError)


def test_the_end_and_the_exit_are_heard_once():
    with running() as rig:
        assert rig.shell.call(Stop("enough")) == Done()
        assert rig.overs.get(timeout=5).state is RunState.STOPPED
        assert rig.exits.get(timeout=5).why == "enough"
        rig.shell.call(StatusRequest())
        assert rig.overs.empty()
        assert rig.exits.empty()
