"""How a shard's shell fails: in time, for every waiter, and with all room given back."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from queue import SimpleQueue

import pytest
import torch
from common.roads import SEEDED, eventually
from server.hosts import LateLog, Sender, host, hypers, side_by_side

from hubring_common.carrier.inproc import InprocCarrier
from hubring_common.errors import Busy, HubringError, InvalidMessage, RunEnded, TimedOut, UsageError
from hubring_common.ids import BatchKey
from hubring_common.messages import GroupHypers, HyperValue, PullHeader, Verdict
from hubring_server.arena import Pool, Staged
from hubring_server.host import BUFFERS
from hubring_server.judge import MOST_BATCHES
from hubring_server.machine.window import WINDOW

SHORT = 0.05

# --- what no correct worker sends --------------------------------------------------------------


def numbers(**changed):
    """One param group of SGD with some numbers changed; None takes one out."""
    (group,) = hypers(lr=1.0)
    values = {**group.values, **changed}
    return (GroupHypers({name: value for name, value in values.items() if value is not None}),)


WRONG = {
    "another run": ({"run": "another"}, RunEnded, "the run here is a-run, not another"),
    "another shard": ({"shard": 1}, InvalidMessage, "this is shard 0, not 1"),
    "too short": ({"nbytes": 12}, InvalidMessage, "12 bytes are announced"),
    "too long": ({"nbytes": 1 << 60}, InvalidMessage, "bytes are announced"),
    "present": ({"bits": b"\x08"}, InvalidMessage, "past parameter 2"),
    "no groups": ({"groups": ()}, InvalidMessage, "0 param groups came, the model has 1"),
    "not finite": (
        {"groups": numbers(lr=HyperValue((float("nan"),)))},
        InvalidMessage,
        r"lr is \[nan\]: not finite",
    ),
    "two numbers": (
        {"groups": numbers(lr=HyperValue((0.1, 0.2)))},
        InvalidMessage,
        "lr has 2 numbers",
    ),
    "lacking": ({"groups": numbers(momentum=None)}, UsageError, "sent no momentum"),
    "of another type": (
        {"groups": numbers(maximize=HyperValue((1.0,)))},
        UsageError,
        "SGD cannot step with",
    ),
    "a batch past all": (
        {"keys": (BatchKey(0, MOST_BATCHES),)},
        InvalidMessage,
        "epoch 0 has no batch",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_header_is_refused_before_any_room_is_made(case):
    wrong, kind, words = WRONG[case]
    with host() as (shard, weights):
        with pytest.raises(kind, match=words):
            Sender(weights).push(InprocCarrier(shard), **wrong)
        assert not shard._incoming._idle, "a buffer was made"
        assert shard._incoming.out == 0


def test_a_wrong_seed_or_pull_is_refused_before_any_room_is_made():
    with host() as (shard, weights):
        sender, carrier = Sender(weights), InprocCarrier(shard)
        extents = sender.buffers()
        with pytest.raises(InvalidMessage, match="8 bytes are announced"):
            carrier.seed(sender.seed_header(extents, nbytes=8), extents, 5)
        with pytest.raises(RunEnded):
            carrier.pull(PullHeader("another", 0, 1), sender.into, 5)
        assert not shard._incoming._idle
        assert not shard._outgoing._idle


def test_numbers_are_not_judged_by_slots_that_are_half_made(monkeypatch):
    """torch enters a vector among its slots before it makes them."""
    half_made, judged = threading.Event(), threading.Event()
    groups = hypers("RMSprop", momentum=0.9)

    def push(session):
        return Sender(weights, session, groups).push(InprocCarrier(shard)).verdict

    with host("RMSprop", sessions=(1, 2)) as (shard, weights), ThreadPoolExecutor() as pool:
        Sender(weights).seed(InprocCarrier(shard))
        slots, apply = weights._optimizer._blocks[0]._torch.state, weights.apply

        def slowly(record, payloads):
            slots[None] = {}
            half_made.set()
            judged.wait(5)
            del slots[None]
            apply(record, payloads)

        monkeypatch.setattr(weights, "apply", slowly)
        first = pool.submit(push, 1)
        assert half_made.wait(5)
        second = pool.submit(push, 2)
        with suppress(FutureTimeout):  # it waits for the record, or is refused at once
            second.result(0.1)
        judged.set()
        assert [each.result(5) for each in (first, second)] == [Verdict.APPLIED] * 2


# --- time runs out ------------------------------------------------------------------------------


def test_a_log_that_never_answers_ends_each_wait_in_time():
    log = LateLog(limit=SEEDED)
    with host(log=log) as (shard, weights):
        sender, carrier = Sender(weights), InprocCarrier(shard)
        sender.seed(carrier)
        started = time.monotonic()
        with pytest.raises(TimedOut, match=r"no answer for 0\.1 s"):
            sender.push(carrier, timeout=0.1)
        with pytest.raises(TimedOut):
            shard.set_members(2, (1, 2), 0.1)
        assert 0.2 <= time.monotonic() - started < 3
        sender.pull(carrier)
        assert (sender.weights == 0).all(), "applied before it was stored"
        log.reach(SEEDED + 2)
        shard.set_members(2, (1, 2), 5)
        assert sender.push(carrier).verdict is Verdict.DUPLICATE
        assert (sender.weights == -1).all()
        assert (shard._incoming.out, shard._outgoing.out) == (0, 0)
        shard.check()


def test_pushes_that_the_log_keeps_bound_what_more_may_come():
    log = LateLog(limit=SEEDED)
    sessions = range(1, 1 + BUFFERS // WINDOW)
    with host(sessions=sessions, log=log) as (shard, weights):
        carrier = InprocCarrier(shard)
        Sender(weights).seed(carrier)
        for session in sessions:
            sender = Sender(weights, session)
            for sender.seq in range(WINDOW):
                sender.batch = sender.seq
                with pytest.raises(TimedOut):
                    sender.push(carrier, timeout=0, first_incomplete=0)
        eventually(lambda: log.waiting == BUFFERS, "a push was not logged")
        with pytest.raises(Busy, match=f"all {BUFFERS} buffers for pushes"):
            Sender(weights).push(carrier, timeout=SHORT)
        log.reach(SEEDED + BUFFERS)
        assert Sender(weights).push(carrier).verdict is Verdict.DUPLICATE
        assert shard._incoming.out == 0
        shard.check()


# --- the shard breaks, or ends ------------------------------------------------------------------


class Breaks(LateLog):
    """Late, until a record that it cannot keep."""

    def store(self, entry, stored):
        if entry.record.lsn > SEEDED + 2:
            raise OSError("the disk is gone")
        super().store(entry, stored)


def test_a_shard_that_breaks_ends_every_waiter_and_its_server_and_no_later_one_waits():
    crashes, heard = [], SimpleQueue()

    def wait(session):
        try:
            Sender(weights, session).push(InprocCarrier(shard), timeout=20)
        except HubringError as error:
            heard.put(error)

    log = Breaks(limit=SEEDED)
    with host(sessions=(1, 2, 3), log=log, crashed=crashes.append) as (shard, weights):
        Sender(weights).seed(InprocCarrier(shard))
        started = time.monotonic()
        side_by_side(wait, (1, 2, 3))
        wait(1)
        with pytest.raises(RunEnded):
            shard.set_members(2, (1, 2), 20)
        assert time.monotonic() - started < 5
        errors = [heard.get(timeout=1) for _ in range(4)]
        assert {type(error) for error in errors} == {RunEnded}
        assert all("the disk is gone" in error.fact for error in errors)
        assert [type(error) for error in crashes] == [OSError]


def test_a_shard_that_is_closed_ends_every_waiter():
    heard = SimpleQueue()

    def wait():
        try:
            Sender(weights).push(InprocCarrier(shard), timeout=20)
        except RunEnded as error:
            heard.put(error)

    log = LateLog(limit=SEEDED)
    waiter = threading.Thread(target=wait)
    with host(log=log) as (shard, weights):
        Sender(weights).seed(InprocCarrier(shard))
        waiter.start()
        eventually(lambda: log.waiting == 1, "the push was not logged")
    waiter.join(5)
    assert heard.get(timeout=1).fact == "the server is closing"
    with pytest.raises(RunEnded, match="closing"):
        Sender(weights).push(InprocCarrier(shard), timeout=20)


def test_a_closed_shard_leaves_no_thread():
    before = threading.active_count()
    with host() as (shard, _):
        assert threading.active_count() == before + 1
        shard.check()
    assert threading.active_count() == before


def test_who_finds_no_buffer_waits_for_one_until_the_deadline():
    pool = Pool(16, 1, "buffers for pushes")
    held = Staged(pool, [(0, 16)], 1)
    with pytest.raises(Busy, match="all 1 buffers for pushes of 16 bytes"):
        Staged(pool, [(0, 16)], 0.05)
    started = time.monotonic()
    threading.Timer(0.05, held.discard).start()
    Staged(pool, [(0, 16)], 20).discard()
    assert time.monotonic() - started < 5
    held.discard()
    assert pool.out == 0


def test_a_staging_is_used_once():
    pool = Pool(16, 2, "buffers for pushes")
    staged = Staged(pool, [(0, 16)], 1)
    pool.give(staged.surrender())
    with pytest.raises(RuntimeError, match="used once"):
        staged.surrender()
    staged.discard()
    assert pool.out == 0


def test_a_returned_buffer_serves_again():
    pool = Pool(16, 2, "buffers for pushes")
    first = pool.take(1)
    pool.give(first)
    assert pool.take(1).data_ptr() == first.data_ptr()
    assert torch.equal(pool.take(1), torch.zeros(16, dtype=torch.uint8))
