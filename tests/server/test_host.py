"""The shard's shell: replay, whole versions, what it holds back. How it fails: test_host_failures.

The traffic that every carrier brings: tests/common/test_carriers.py.
"""

import threading
from contextlib import closing

import pytest
import torch
from common.roads import SEEDED, eventually
from server.hosts import RUN, LateLog, Sender, host, hypers, side_by_side, spec

from hubring_common.carrier.inproc import InprocCarrier
from hubring_common.errors import InvalidMessage, LeaseLost, NotYet, TimedOut
from hubring_common.layout import plan
from hubring_common.messages import Verdict
from hubring_server.host import ShardHost
from hubring_server.judge import refusal
from hubring_server.log import MemoryLog
from hubring_server.machine.messages import Why
from hubring_server.machine.mode import ASYNC
from hubring_server.weights import ShardWeights

REPLAYED = {
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "rprop": ("Rprop", {"lr": 0.01}),
}
PRESENT = (None, {0, 2}, {1}, ())
"""Of successive pushes: all parameters, some, others, none."""


@pytest.mark.parametrize("case", REPLAYED)
def test_a_recorded_log_replayed_gives_the_same_weights_bit_for_bit(case):
    """I6: whatever the threads did, the records alone say what the weights are."""
    kind, options = REPLAYED[case]
    log = MemoryLog(keep=None)

    def work(session):
        sender, carrier = Sender(weights, session, hypers(kind, **options)), InprocCarrier(shard)
        generator = torch.Generator().manual_seed(session)
        for step in range(12):
            grad = torch.randn(sender.weights.numel(), generator=generator)
            sender.push(carrier, PRESENT[(step + session) % len(PRESENT)], grad)

    with host(kind, sessions=(1, 2, 3), log=log) as (shard, weights):
        Sender(weights).seed(InprocCarrier(shard), value=0.5)
        side_by_side(work, (1, 2, 3))
        expected, slots = weights.data.clone(), weights.snapshot()["optimizer"]
    again = ShardWeights(plan(spec(kind), 1), 0)
    for entry in log:
        again.apply(entry.record, entry.payloads)
    assert torch.equal(again.data, expected)
    assert_same_slots(again.snapshot()["optimizer"], slots)


def assert_same_slots(one, other):
    for ours, theirs in zip(one.blocks, other.blocks, strict=True):
        assert ours.spans == theirs.spans
        assert ours.vectors.keys() == theirs.vectors.keys()
        assert all(torch.equal(ours.vectors[name], theirs.vectors[name]) for name in ours.vectors)


def test_a_snapshot_goes_on_bit_for_bit():
    kind, options = REPLAYED["adamw"]
    with host(kind) as (shard, weights):
        carrier, sender = InprocCarrier(shard), Sender(weights, 1, hypers(kind, **options))
        sender.seed(carrier)
        sender.push(carrier, value=0.3)
        state = shard.snapshot()
        sender.push(carrier, value=0.7)
        expected = weights.data.clone()
        last = shard.snapshot()["machine"]
    again = ShardWeights(plan(spec(kind), 1), 0)
    again.restore(state)
    with_state = ShardHost(RUN, again, ASYNC, MemoryLog(), lambda error: None)
    with closing(with_state):
        with_state._machine.restore(state["machine"])
        sender.seq = sender.batch = 1
        sender.push(InprocCarrier(with_state), value=0.7)
        assert torch.equal(again.data, expected)
        assert with_state.snapshot()["machine"] == last


def test_every_version_is_whole_and_is_what_its_number_says():
    """A million weights take long enough to step and to copy that a torn version would show."""

    def work(session):
        sender, carrier = Sender(weights, session), InprocCarrier(shard)
        for _ in range(20):
            see(sender, sender.push(carrier).version)

    def see(sender, version):
        assert (sender.weights == sender.weights[0]).all(), "a torn version"
        assert sender.weights[0] == SEEDED - version

    def look(_session):
        reader, last = Sender(weights), 0
        while last < SEEDED + 60:
            version = reader.pull(InprocCarrier(shard)).version
            assert last <= version, "I2: versions go back"
            last = version
            see(reader, version)

    with host(sessions=(1, 2, 3), shapes={"big": (1 << 20,)}) as (shard, weights):
        Sender(weights).seed(InprocCarrier(shard))
        side_by_side(lambda session: (work if session else look)(session), (0, 1, 2, 3))
        shard.check()
        assert shard._incoming.out == shard._outgoing.out == 0


def test_pushes_that_come_twice_at_the_same_time_are_applied_once():
    known = {Verdict.APPLIED, Verdict.DUPLICATE}
    in_step = {session: threading.Barrier(2) for session in (1, 2)}

    def work(number):
        session = 1 + number // 2
        sender = Sender(weights, session)
        for _ in range(50):
            in_step[session].wait(10)
            assert sender.push(InprocCarrier(shard)).verdict in known

    with host(sessions=(1, 2)) as (shard, weights):
        reader = Sender(weights)
        reader.seed(InprocCarrier(shard))
        side_by_side(work, (0, 1, 2, 3))
        assert reader.pull(InprocCarrier(shard)).version == SEEDED + 100
        assert (reader.weights == -100).all()
        shard.check()
        progress = shard.progress()
        assert (progress.applied, progress.refused) == (SEEDED + 100, 0)
        assert progress.duplicates <= 100


def test_a_gradient_that_is_not_finite_leaves_its_id_and_its_batch():
    with host() as (shard, weights):
        sender, carrier = Sender(weights), InprocCarrier(shard)
        sender.seed(carrier)
        answer = sender.push(carrier, value=float("nan"))
        assert (answer.verdict, answer.param) == (Verdict.NOT_FINITE, "first.weight")
        assert (answer.version, shard._incoming.out) == (SEEDED, 0)
        sender.seq = sender.batch = 0
        answer = sender.push(carrier)
        assert (answer.verdict, answer.lsn) == (Verdict.APPLIED, SEEDED + 1)
        assert (sender.weights == -1).all()


def test_first_weights_that_are_not_finite_are_none():
    with host() as (shard, weights):
        sender, carrier = Sender(weights), InprocCarrier(shard)
        with pytest.raises(InvalidMessage, match=r"first\.weight has a NaN or Inf"):
            sender.seed(carrier, value=float("inf"))
        with pytest.raises(NotYet):
            sender.pull(carrier)
        assert shard._incoming.out == 0
        sender.seed(carrier, value=3.0)
        assert sender.pull(carrier).version == SEEDED
        assert (sender.weights == 3).all()


def test_what_a_touched_slice_holds_of_absent_parameters_is_not_looked_at():
    shapes = {"one": (20,), "other": (20,)}
    with host(shapes=shapes) as (shard, weights):
        sender, carrier = Sender(weights), InprocCarrier(shard)
        sender.seed(carrier)
        grad = torch.full_like(sender.weights, float("nan"))
        grad[32:] = 1.0
        assert sender.push(carrier, {1}, grad).verdict is Verdict.APPLIED
        assert (sender.weights[:32] == 0).all()
        assert (sender.weights[32:] == -1).all()


def test_there_are_no_weights_before_the_first_are_stored():
    log = LateLog(limit=1)
    with host(log=log) as (shard, weights):
        sender, carrier = Sender(weights), InprocCarrier(shard)
        with pytest.raises(TimedOut):
            shard.set_members(2, (1, 2), 0.05)
        with pytest.raises(TimedOut):
            carrier.seed(
                sender.seed_header(sender.buffers(value=3.0)), sender.buffers(value=3.0), 0
            )
        eventually(lambda: log.waiting == 2, "the seed was not logged")
        log.reach(2)
        shard.set_members(2, (1, 2), 5)
        with pytest.raises(NotYet):
            sender.pull(carrier)
        log.reach(3)
        sender.seed(carrier, value=3.0)
        assert sender.pull(carrier).version == 3
        assert (sender.weights == 3).all()


@pytest.mark.parametrize("why", set(Why) - {Why.BATCH_DONE})
def test_every_refusal_is_an_error_with_a_reason(why):
    error = refusal(why, "push 3 of session 1")
    assert (error.fact, error.who) == (why.value, "push 3 of session 1")
    retried = {Why.FENCED: LeaseLost, Why.UNSEEDED: NotYet, Why.NOT_CHIEF: NotYet}
    assert type(error) is retried.get(why, InvalidMessage)


def test_a_shard_that_holds_nothing_still_keeps_the_books():
    layout = plan(spec(shapes={"tiny": (2,)}), 2)
    weights = ShardWeights(layout, 1)
    assert weights.nbytes == 0
    shard = ShardHost(RUN, weights, ASYNC, MemoryLog(), lambda error: None)
    with closing(shard):
        shard.set_members(1, (1,), 5)
        sender, carrier = Sender(weights), InprocCarrier(shard)
        sender.seed(carrier)
        first = sender.push(carrier)
        sender.seq = sender.batch = 0
        assert sender.push(carrier).lsn == first.lsn
