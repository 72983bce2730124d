"""One contract for every carrier, against a real shard. What gRPC alone can suffer is elsewhere."""

import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from common.roads import SEEDED, GrpcRoad, InprocRoad, StalledLog, nothing_lent
from server.hosts import RUN, Sender, host

from hubring_common.carrier.base import Extent, digest_of
from hubring_common.errors import (
    InvalidMessage,
    LeaseLost,
    NotYet,
    RunEnded,
    TimedOut,
    UsageError,
)
from hubring_common.ids import BatchKey
from hubring_common.messages import GroupHypers, HyperValue, PullHeader, Verdict

ROADS = [InprocRoad, GrpcRoad]


@pytest.fixture(params=ROADS)
def road(request):
    """(road, weights of the shard), seeded with zeros; nothing may be lent at the end."""
    with host(sessions=(1, 2, 3)) as (shard, weights):
        road = request.param(shard)
        Sender(weights).seed(road.carrier())
        yield road, weights
        road.close()
        nothing_lent(shard)
        shard.check()


def test_a_push_lands_with_the_version_that_it_made(road):
    road, weights = road
    sender = Sender(weights)
    answer = sender.push(road.carrier(), value=2.0)
    assert answer.verdict is Verdict.APPLIED
    assert answer.version == answer.lsn
    assert (sender.weights == -2).all()


def test_a_pull_brings_one_whole_version(road):
    road, weights = road
    Sender(weights).push(road.carrier())
    other = Sender(weights, session=2)
    answer = other.pull(road.carrier())
    assert answer.nbytes == weights.nbytes
    assert (other.weights == -1).all()


def test_bytes_are_cut_as_the_callers_buffers_are(road):
    road, weights = road
    sender, carrier = Sender(weights), road.carrier()
    whole = memoryview(bytes(sender.buffers(value=1.0)[0].data[:4]) * (weights.nbytes // 4))
    edges = [0, 3, 1000, 1001, 30_000, weights.nbytes]
    header = sender.header(sender.buffers())
    into = bytearray(weights.nbytes)
    room = [Extent(a, memoryview(into)[a:b]) for a, b in pairwise(edges)]
    carrier.push(header, [Extent(a, whole[a:b]) for a, b in pairwise(edges)], room, 5)
    assert torch.frombuffer(into, dtype=torch.float32).eq(-1).all()


def test_only_touched_slices_travel_and_only_present_parameters_step(road):
    road, weights = road
    sender = Sender(weights)
    extents = sender.buffers({1})
    assert 0 < sum(e.data.nbytes for e in extents) < weights.nbytes
    sender.push(road.carrier(), present={1})
    stepped = (sender.weights == -1).sum().item()
    assert 40 <= stepped < 60
    assert (sender.weights == 0).sum().item() == sender.weights.numel() - stepped


def test_an_abstention_changes_nothing_and_uses_the_batch_up(road):
    road, weights = road
    sender, carrier = Sender(weights), road.carrier()
    answer = sender.push(carrier, present=(), groups=())
    assert answer.verdict is Verdict.APPLIED
    assert (sender.weights == 0).all()
    sender.batch = 0
    assert sender.push(carrier).verdict is Verdict.BATCH_DONE


def test_the_same_id_again_is_answered_and_not_applied(road):
    road, weights = road
    sender, carrier = Sender(weights), road.carrier()
    first = sender.push(carrier)
    sender.seq = sender.batch = 0
    again = sender.push(carrier)
    assert (again.verdict, again.lsn) == (Verdict.DUPLICATE, first.lsn)
    assert (sender.weights == -1).all()


def test_a_batch_that_is_done_is_named_and_the_new_weights_come(road):
    road, weights = road
    Sender(weights, session=2).push(road.carrier())
    sender = Sender(weights)
    answer = sender.push(road.carrier(), keys=(BatchKey(2, 0), BatchKey(1, 0)))
    assert (answer.verdict, answer.done_keys) == (Verdict.BATCH_DONE, ((2, 0),))
    assert (sender.weights == -1).all()


def test_a_gradient_that_is_not_finite_is_named(road):
    road, weights = road
    sender = Sender(weights)
    grad = torch.zeros_like(sender.weights)
    grad[-1] = float("nan")
    answer = sender.push(road.carrier(), value=grad)
    assert (answer.verdict, answer.param) == (Verdict.NOT_FINITE, "last.weight")
    assert (sender.weights == 0).all()


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        ({"run": "another"}, RunEnded, "the run here is a-run, not another"),
        ({"shard": 1}, InvalidMessage, "this is shard 0, not 1"),
        ({"nbytes": 12}, InvalidMessage, "12 bytes are announced"),
        ({"nbytes": 1 << 60}, InvalidMessage, "bytes are announced"),
        ({"bits": b"\xff\xff"}, InvalidMessage, "past parameter 2"),
        ({"groups": ()}, InvalidMessage, "0 param groups came"),
        ({"keys": ()}, InvalidMessage, "names the batches"),
        ({"first_incomplete": 3}, InvalidMessage, "window"),
    ],
)
def test_a_wrong_header_is_refused_alike(road, wrong, kind, words):
    road, weights = road
    with pytest.raises(kind, match=words):
        Sender(weights).push(road.carrier(), **wrong)


def test_a_number_that_is_not_finite_or_missing_is_refused(road):
    road, weights = road
    (group,) = Sender(weights).groups
    nan = GroupHypers({**group.values, "lr": HyperValue((float("nan"),))})
    lacks = GroupHypers({k: v for k, v in group.values.items() if k != "momentum"})
    with pytest.raises(InvalidMessage, match=r"lr is .*not finite"):
        Sender(weights, groups=(nan,)).push(road.carrier())
    with pytest.raises(UsageError, match="momentum"):
        Sender(weights, groups=(lacks,)).push(road.carrier())


def test_a_stranger_is_fenced(road):
    road, weights = road
    with pytest.raises(LeaseLost):
        Sender(weights, session=9).push(road.carrier())


def test_first_weights_are_the_chiefs_to_send_and_stay_once_pushed_to(road):
    road, weights = road
    sender, carrier = Sender(weights), road.carrier()
    with pytest.raises(NotYet, match="only the chief"):
        Sender(weights, session=2).seed(carrier)
    sender.seed(carrier, value=5.0)
    sender.push(carrier)
    assert (sender.weights == 4).all()
    sender.seed(carrier, value=5.0)
    with pytest.raises(InvalidMessage, match="holds other weights"):
        sender.seed(carrier, value=6.0)
    with pytest.raises(InvalidMessage, match="NaN or Inf in its first weights"):
        sender.seed(carrier, value=float("inf"))
    sender.pull(carrier)
    assert (sender.weights == 4).all()


@pytest.mark.parametrize("missing", [4, -4])
def test_a_payload_that_is_not_as_long_as_announced_is_refused(road, missing):
    road, weights = road
    sender, carrier = Sender(weights), road.carrier()
    whole = sender.buffers()
    data = bytes(weights.nbytes - missing)
    other = [Extent(0, memoryview(data))]
    for call in (
        lambda: carrier.seed(sender.seed_header(whole), other, 5),
        lambda: carrier.push(sender.header(whole), other, sender.into, 5),
    ):
        with pytest.raises(InvalidMessage, match=r"short|past all that was due"):
            call()
    sender.pull(carrier)
    assert (sender.weights == 0).all()


@pytest.mark.parametrize("missing", [4, -4])
def test_room_that_is_not_the_shards_size_is_refused(road, missing):
    road, weights = road
    room = [Extent(0, memoryview(bytearray(weights.nbytes - missing)))]
    with pytest.raises(InvalidMessage, match=r"short|past all that was due"):
        road.carrier().pull(PullHeader(RUN, 0, 1), room, 5)


def test_links_side_by_side(road):
    road, weights = road

    def work(session):
        sender, carrier = Sender(weights, session), road.carrier()
        for _ in range(20):
            sender.push(carrier)
            assert (sender.weights == sender.weights[0]).all(), "a torn version"

    threads = [threading.Thread(target=work, args=(session,)) for session in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    last = Sender(weights)
    last.pull(road.carrier())
    assert (last.weights == -60).all()


@pytest.mark.parametrize("kind", ROADS)
def test_before_the_first_weights_there_is_nothing_to_pull_or_push(kind):
    with host() as (shard, weights):
        road = kind(shard)
        with pytest.raises(NotYet):
            Sender(weights).pull(road.carrier())
        with pytest.raises(NotYet):
            Sender(weights).push(road.carrier())
        road.close()


@pytest.mark.parametrize("kind", ROADS)
def test_a_log_that_stalls_ends_the_call_in_time_and_the_same_push_again_is_answered(kind):
    log = StalledLog()
    with host(log=log) as (shard, weights):
        road = kind(shard)
        sender, carrier = Sender(weights), road.carrier()
        sender.seed(carrier)
        started = time.monotonic()
        with pytest.raises(TimedOut):
            sender.push(carrier, timeout=0.3)
        assert time.monotonic() - started < 3
        sender.pull(carrier)
        assert (sender.weights == 0).all(), "applied before it was stored"
        log.flow()
        answer = sender.push(carrier)
        # The first copy's answer, if the second asks before it is out.
        assert answer.verdict in {Verdict.APPLIED, Verdict.DUPLICATE}
        assert answer.lsn == SEEDED + 1
        assert (sender.weights == -1).all()
        road.close()
        nothing_lent(shard)


@pytest.mark.parametrize("kind", ROADS)
def test_a_large_payload_takes_many_frames(kind):
    shapes = {"big": (3, 1 << 20), "odd": (17,)}
    with host(shapes=shapes) as (shard, weights):
        road = kind(shard)
        sender = Sender(weights)
        grad = torch.arange(sender.weights.numel(), dtype=torch.float32)
        sender.seed(road.carrier())
        sender.push(road.carrier(), value=grad, timeout=30)
        real = sender.weights[: (3 << 20) + 17]
        assert torch.equal(real, -grad[: (3 << 20) + 17])
        road.close()
        nothing_lent(shard)


@pytest.fixture(params=[1, 1000, 3 << 20], ids=["a byte", "one message", "many frames"])
def data(request):
    return torch.randint(256, (request.param,), dtype=torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("kind", ROADS)
def test_still_tensors_come_back_as_they_were_sent(kind, data):
    with host(sessions=(1, 2), still=len(data)) as (shard, weights):
        road = kind(shard)
        chief, other, carrier = Sender(weights), Sender(weights, 2), road.carrier()
        with pytest.raises(NotYet):
            other.pull_still(carrier, len(data))
        chief.seed_still(carrier, data)
        chief.seed(carrier)
        chief.push(carrier)
        assert other.pull_still(carrier, len(data)) == data
        road.close()
        nothing_lent(shard)


@pytest.mark.parametrize("kind", ROADS)
def test_what_the_caller_has_already_is_not_written_again(kind, data):
    with host(sessions=(1, 2), still=len(data)) as (shard, weights):
        road = kind(shard)
        chief, carrier = Sender(weights), road.carrier()
        chief.seed_still(carrier, data)
        chief.seed(carrier)
        room = [Extent(0, memoryview(data))]  # cannot be written to
        header = PullHeader(RUN, 0, 2, still=True, have=digest_of(room))
        answer = carrier.pull(header, room, 30)
        assert (answer.nbytes, answer.digest) == (len(data), header.have)
        with pytest.raises(ValueError, match="read-only"):
            carrier.pull(replace(header, have=header.have ^ 1), room, 30)
        road.close()
        nothing_lent(shard)


@pytest.mark.parametrize("kind", ROADS)
def test_still_tensors_of_another_length_are_refused_and_leave_what_was_there(kind):
    with host(still=1000) as (shard, weights):
        road = kind(shard)
        chief, carrier = Sender(weights), road.carrier()
        for size in (999, 1001):
            with pytest.raises(InvalidMessage, match="1000 belong to the still tensors"):
                chief.seed_still(carrier, bytes(size))
            with pytest.raises(InvalidMessage, match=r"short|past all that was due"):
                chief.seed_still(carrier, bytes(size), nbytes=1000)
        chief.seed_still(carrier, bytes(1000))
        chief.seed(carrier)
        for size in (999, 1001):
            with pytest.raises(InvalidMessage, match=r"short|past all that was due"):
                chief.pull_still(carrier, size)
        road.close()
        nothing_lent(shard)


@pytest.mark.parametrize("kind", ROADS)
def test_a_shard_without_bytes_keeps_the_books(kind):
    with host(shapes={"none": (0, 5)}) as (shard, weights):
        assert weights.nbytes == 0
        road = kind(shard)
        sender, carrier = Sender(weights), road.carrier()
        sender.seed(carrier)
        assert sender.push(carrier).verdict is Verdict.APPLIED
        assert sender.pull(carrier).version == SEEDED + 1
        road.close()
        nothing_lent(shard)
