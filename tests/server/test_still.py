"""The still tensors at a shard: refused before room is made, replaced whole, kept once."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch
from common.roads import eventually, nothing_lent
from server.hosts import RUN, LateLog, Sender, host, spec

from hubring_common.carrier.base import Extent, digest_of
from hubring_common.carrier.inproc import InprocCarrier
from hubring_common.errors import Busy, InvalidMessage, LeaseLost, NotYet, RunEnded
from hubring_common.layout import plan
from hubring_common.messages import PullHeader
from hubring_server.host import ShardHost
from hubring_server.log import MemoryLog
from hubring_server.machine.mode import ASYNC
from hubring_server.weights import ShardWeights

SIZE = 1000
ONES, TWOS = bytes([1]) * SIZE, bytes([2]) * SIZE
WRONG = {
    "another run": ({"run": "another"}, RunEnded, "the run here is a-run"),
    "another shard": ({"shard": 1}, InvalidMessage, "this is shard 0"),
    "too short": ({"nbytes": SIZE - 1}, InvalidMessage, "999 bytes are announced, 1000 belong to"),
    "too long": ({"nbytes": 1 << 60}, InvalidMessage, "1000 belong to the still tensors"),
}


@pytest.fixture
def shard():
    """(the shard, a carrier to it, the chief's end, another worker's)."""
    with host(sessions=(1, 2), still=SIZE) as (running, weights):
        yield running, InprocCarrier(running), Sender(weights), Sender(weights, 2)
        nothing_lent(running)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_header_is_refused_before_any_room_is_made(shard, monkeypatch, case):
    running, carrier, chief, _ = shard
    wrong, kind, words = WRONG[case]
    header = chief.seed_header([Extent(0, memoryview(ONES))], still=True)
    header = type(header)(**{**{n: getattr(header, n) for n in header.__slots__}, **wrong})
    monkeypatch.setattr(running._still, "take", None)
    with pytest.raises(kind, match=words):
        carrier.seed(header, [Extent(0, memoryview(ONES))], 5)


def test_a_model_without_any_takes_none():
    with host() as (running, weights), pytest.raises(InvalidMessage, match="0 belong to the still"):
        Sender(weights).seed_still(InprocCarrier(running), ONES)


def test_what_a_shard_keeps_is_pulled_by_all_once_the_weights_are_there_too(shard):
    _, carrier, chief, other = shard
    with pytest.raises(NotYet, match="no weights yet"):
        other.pull_still(carrier, SIZE)
    with pytest.raises(InvalidMessage, match="come before its first weights"):
        chief.seed(carrier)
    with pytest.raises(NotYet, match="only the chief"):
        other.seed_still(carrier, TWOS)
    chief.seed_still(carrier, ONES)
    with pytest.raises(NotYet, match="no weights yet"):
        other.pull_still(carrier, SIZE)
    chief.seed(carrier)
    chief.push(carrier)
    with pytest.raises(InvalidMessage, match="holds other weights already"):
        chief.seed_still(carrier, TWOS)
    assert other.pull_still(carrier, SIZE) == ONES


def test_the_next_chief_replaces_what_a_dead_one_left(shard):
    running, carrier, chief, other = shard
    chief.seed_still(carrier, ONES)
    running.set_members(2, (2,), 5)
    with pytest.raises(LeaseLost):
        chief.seed(carrier)
    other.seed_still(carrier, TWOS)
    other.seed(carrier)
    assert other.pull_still(carrier, SIZE) == TWOS


def test_nan_bytes_are_no_matter(shard):
    _, carrier, chief, other = shard
    data = torch.full((SIZE // 4,), float("nan")).numpy().tobytes()
    chief.seed_still(carrier, data)
    chief.seed(carrier)
    assert other.pull_still(carrier, SIZE) == data


def test_one_copy_is_kept_and_one_more_is_on_its_way_at_most(shard):
    running, carrier, chief, _ = shard
    chief.seed_still(carrier, ONES)
    chief.seed_still(carrier, ONES)
    assert not running._still._idle
    header = chief.seed_header([Extent(0, memoryview(ONES))], still=True)
    on_its_way = running.stage_seed(header, 5)
    with pytest.raises(Busy, match="all 1 buffers for still tensors of 1000 bytes"):
        running.stage_seed(header, 0)
    on_its_way.discard()
    running.stage_seed(header, 0).discard()


def test_a_pull_reads_what_was_there_when_it_began_though_it_is_replaced(shard):
    running, carrier, chief, other = shard
    chief.seed_still(carrier, ONES)
    chief.seed(carrier)
    version = running.pull(PullHeader(RUN, 0, 1, still=True), 5)
    running.set_members(2, (2,), 5)
    other.seed_still(carrier, TWOS)
    assert bytes(version.data) == ONES
    version.release()
    assert other.pull_still(carrier, SIZE) == TWOS


def test_a_snapshot_and_a_replay_have_them():
    log = MemoryLog(keep=None)
    with host(still=SIZE, log=log) as (running, weights):
        chief, carrier = Sender(weights), InprocCarrier(running)
        chief.seed_still(carrier, TWOS)
        chief.seed(carrier)
        chief.push(carrier)
        state = running.snapshot()
    replayed, again = (ShardWeights(plan(spec(still=SIZE), 1), 0) for _ in range(2))
    for entry in log:
        replayed.apply(entry.record, entry.payloads)
    assert replayed.still.numpy().tobytes() == TWOS
    again.restore(state)
    restored = ShardHost(RUN, again, ASYNC, MemoryLog(), lambda error: None)
    with closing(restored):
        restored._machine.restore(state["machine"])
        assert again.still.numpy().tobytes() == TWOS
        with pytest.raises(InvalidMessage, match="holds other weights"):
            chief.seed_still(InprocCarrier(restored), ONES)
        chief.seed_still(InprocCarrier(restored), TWOS)


def test_weights_and_still_tensors_of_one_digest_are_answered_each_by_its_own_record():
    log = LateLog(limit=1)
    with (
        host(shapes={"w": (256,)}, still=1024, log=log) as (running, weights),
        ThreadPoolExecutor() as pool,
    ):
        chief, carrier = Sender(weights), InprocCarrier(running)
        for seed in (lambda: chief.seed_still(carrier, bytes(1024)), lambda: chief.seed(carrier)):
            before = log.waiting
            pool.submit(seed)
            eventually(lambda had=before: log.waiting > had, "it was not logged")
        log.reach(2)
        with pytest.raises(LeaseLost):
            Sender(weights, session=9).push(carrier)  # the machine has heard of all before
        (key,) = running._callers
        assert key == (1, digest_of([Extent(0, memoryview(bytes(1024)))]), False)
        log.reach(3)
