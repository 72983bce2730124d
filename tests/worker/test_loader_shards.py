"""Data that comes in shards: each sample once, whoever reads it, whatever ends in between."""

import gc
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worker.loaders import FORKED, HERE_OR_FORKED, PERSISTENT, SPAWNED
from worker.local_tasks import TaskPool
from worker.noisy import collate_with_noise
from worker.streamed_data import SHARDS, Files, Numbers, Servers, ids, stream, train
from worker.test_loader import error_of, generators, interleave

from hubring_common.errors import SettingsMismatch, UsageError
from hubring_common.ids import BatchKey
from hubring_worker.seeding import mix
from hubring_worker.streams import ShardReader, Wanted, batch_key, shard_of

EVERYWHERE = [*HERE_OR_FORKED, pytest.param(SPAWNED, id="spawn")]


@pytest.fixture(autouse=True)
def _no_process_stays():
    yield
    gc.collect()


def leases(epoch=0, count=5):
    return [BatchKey(epoch, k) for k in range(count)]


# --- exactly once ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    batch_size=st.integers(1, 4),
    shuffle=st.booleans(),
    loaders=st.integers(1, 3),
    turns=st.lists(st.integers(0, 2)),
)
def test_every_sample_once_an_epoch(sizes, batch_size, shuffle, loaders, turns):
    pool = TaskPool(span=2)
    servers = Servers(pool)
    options = {"sizes": sizes, "batch_size": batch_size, "shuffle": shuffle}
    workers = [stream(pool, f"w{i}", **options) for i in range(loaders)]
    for epoch in range(2):
        for loader, batch in interleave(workers, iter(turns)):
            assert not servers.step(loader, f"w{workers.index(loader)}", batch)
        for i, loader in enumerate(workers):
            servers.tell(loader, f"w{i}")
        assert servers.samples(epoch) == ids(sizes)
        assert sorted(pool.done) == [key for e in range(epoch + 1) for key in leases(e, len(sizes))]
        assert not pool.leased


@pytest.mark.parametrize("options", EVERYWHERE)
def test_here_or_in_processes_the_same_keys_samples_and_augmentation(options):
    data = {"batch_size": 2, "shuffle": True, "collate_fn": collate_with_noise}
    expected = by_key(stream(TaskPool(), **data))
    pool = TaskPool()
    got = by_key(stream(pool, **data, **options))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert sorted(pool.done) == leases(0) + leases(1)


def by_key(loader, epochs=2):
    found, pool = {}, loader._feed._tasks.pool
    for _ in range(epochs):
        for batch in loader:
            ((key,), _) = loader.take_delivered()
            found[key] = batch
            pool.finish("w0", loader.leases_of((key,), ())[0])
    pool.finish("w0", loader.leases_of((), ())[0])
    return found


def test_keys_name_the_shards_place_and_the_batch():
    keys = sorted(by_key(stream(TaskPool()), epochs=1))
    batches = [-(-size // 2) for size in SHARDS]
    assert keys == [BatchKey(0, k << 32 | i) for k, n in enumerate(batches) for i in range(n)]
    assert shard_of(batch_key(BatchKey(3, 7), 5)) == (BatchKey(3, 7), 5)


def test_the_order_of_the_shards_is_the_permutation_of_seed_and_epoch():
    loader = stream(TaskPool(), sizes=[1] * 40, batch_size=1, shuffle=True)
    for epoch in range(2):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(mix(7, epoch)))
        assert [int(batch[0, 0]) // 100 for batch in loader] == order.tolist()


def test_drop_last_is_of_each_shard():
    pool = TaskPool()
    servers = Servers(pool)
    train(stream(pool, drop_last=True), servers)
    assert servers.samples() == [0, 1, 2, 3, *range(200, 208), 400, 401]
    assert sorted(pool.done) == leases()


# --- a shard is done when it was read and acknowledged to its end -----------------------------


def test_a_shard_is_done_with_the_answer_that_follows_its_end():
    pool = TaskPool(span=1)
    servers = Servers(pool)
    batches = iter(loader := stream(pool, sizes=[4, 2]))
    for _ in range(2):
        servers.step(loader, batch=next(batches))
    assert pool.done == []  # its end is not known
    batch = next(batches)
    assert pool.done == []
    servers.step(loader, batch=batch)
    assert pool.done == [(0, 0)]
    assert next(batches, None) is None
    servers.tell(loader)
    assert pool.done == [(0, 0), (0, 1)]


def test_a_shard_waits_for_the_step_that_uses_its_last_batch():
    pool = TaskPool(span=1)
    loader = stream(pool, sizes=[4, 2])
    list(loader)
    keys, samples = loader.take_delivered()
    assert samples == 6
    servers = Servers(pool)
    servers.tell(loader, done=keys[:1])
    loader.give_back()
    assert pool.done == []
    assert pool.held_by("w0") == {(0, 0), (0, 1)}  # delivered to their ends: nothing goes back
    servers.tell(loader, done=keys[1:])
    assert pool.done == [(0, 0), (0, 1)]


def test_empty_shards_are_done_without_a_step():
    pool = TaskPool(span=1)
    loader = stream(pool, sizes=[0, 0, 0])
    assert list(loader) == []
    Servers(pool).tell(loader)
    assert sorted(pool.done) == leases(count=3)


def test_a_dead_workers_shard_is_read_again_and_its_batches_confessed():
    pool = TaskPool(span=1)
    servers = Servers(pool)
    dead, alive = stream(pool, "dead", sizes=[8, 6]), stream(pool, "alive", sizes=[8, 6])
    batches = iter(dead)
    servers.step(dead, "dead", next(batches))
    servers.step(dead, "dead", next(batches), heard=False)
    pool.bury("dead")
    confessed = [servers.step(alive, "alive", batch) for batch in alive]
    servers.tell(alive, "alive")
    assert [key for keys in confessed for key in keys] == [(0, 0), (0, 1)]
    assert servers.samples() == ids([8, 6])
    assert sorted(pool.done) == leases(count=2)


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_after_a_break_the_shard_goes_back_and_only_delivered_batches_count(options):
    pool = TaskPool(span=1)
    servers = Servers(pool)
    loader = stream(pool, sizes=[10, 10, 10], **options)
    batches = iter(loader)
    for _ in range(3):
        servers.step(loader, batch=next(batches))
    loader.give_back()
    assert not pool.held_by("w0")
    assert len(servers.done) == 3
    other = stream(pool, "w1", sizes=[10, 10, 10])
    train(other, servers, "w1")
    assert servers.samples() == ids([10, 10, 10])
    assert sorted(pool.done) == leases(count=3)


def test_who_comes_back_to_its_own_shard_is_not_given_what_it_trained():
    pool = TaskPool(span=1)
    servers = Servers(pool)
    loader = stream(pool, sizes=[10])
    batches = iter(loader)
    for _ in range(2):
        servers.step(loader, batch=next(batches))
    last = next(batches)
    loader.give_back()
    assert servers.step(loader, batch=last) == []  # a step on it, after the break
    loader.set_epoch(0)
    assert [servers.step(loader, batch=batch) for batch in loader] == [[], []]
    servers.tell(loader)
    assert servers.samples() == ids([10])
    assert pool.done == [(0, 0)]


def test_batches_that_a_server_refused_are_trained_when_the_shard_comes_again():
    pool = TaskPool(span=1)
    loader = stream(pool, sizes=[6])
    list(loader)
    keys, _ = loader.take_delivered()
    servers = Servers(pool)
    servers.tell(loader, done=keys[:2], returned=keys[2:])
    assert pool.done == []
    assert not pool.held_by("w0")
    loader.set_epoch(0)
    assert len(list(loader)) == 1
    assert loader.take_delivered()[0] == keys[2:]
    servers.tell(loader, done=keys[2:])
    assert pool.done == [(0, 0)]


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_a_sample_that_cannot_be_read_ends_the_pass_and_gives_the_shard_back(options):
    pool = TaskPool(span=1)
    loader = stream(pool, make=Files(poison=203), **options)
    batches = iter(loader)
    assert "sample 203" in error_of(batches)
    assert next(batches, None) is None
    loader.give_back()
    keys, _ = loader.take_delivered()
    assert all(shard_of(key)[0] in leases() for key in keys)
    assert BatchKey(0, 2) not in pool.held_by("w0")


def test_an_iteration_ends_when_another_begins():
    loader = stream(TaskPool(span=1), sizes=[8, 8])
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(UsageError, match="its batches went back"):
        next(first)
    next(second)


def test_a_drained_loader_ends_with_the_shard_in_hand():
    pool = TaskPool(span=1)
    loader = stream(pool, sizes=[6, 6])
    batches = iter(loader)
    next(batches)
    pool.is_draining = True
    assert len(list(batches)) == 2


# --- reading ---------------------------------------------------------------------------------


def test_a_shard_is_opened_once_and_closed():
    files = Files()
    pool = TaskPool(span=1)
    loader = stream(pool, make=files)
    train(loader, Servers(pool), epochs=2)
    assert files.opened == files.closed == [0, 1, 2, 3, 4] * 2
    next(iter(loader))
    loader.give_back()
    assert files.closed[-1] == 0


@pytest.mark.parametrize("options", [FORKED, PERSISTENT])
def test_each_process_keeps_to_its_own_shard(options):
    """A request that went to the wrong process would open the shard a second time there."""
    loader = stream(TaskPool(span=1), make=Openings(), sizes=[20, 20, 20, 20, 20], **options)
    readings, processes = {}, set()
    for _ in range(2):
        for batch in loader:
            ((key,), _) = loader.take_delivered()
            readings.setdefault(shard_of(key)[0], set()).update(map(tuple, batch.tolist()))
            processes |= {process for process, _ in batch.tolist()}
    assert [len(found) for found in readings.values()] == [1] * 10
    assert len(processes) >= 2


class Openings:
    """Samples of (the process that reads, how many shards it had opened)."""

    def __init__(self):
        self.opened = 0

    def __call__(self, shard):
        self.opened += 1
        for _ in range(shard[1]):
            yield torch.tensor([os.getpid(), self.opened])


def test_a_reader_answers_whatever_it_is_asked():
    """Out of order, again, or past the end: as if it had read from the beginning."""
    reader = ShardReader(Numbers(), [(0, 7)], batch_size=2, drop_last=False, seed=7)
    lease = BatchKey(4, 0)
    expected = [reader.__getitems__(Wanted(lease, 0, i)) for i in range(5)]
    assert list(map(len, expected)) == [2, 2, 2, 1, 0]
    for i in (3, 1, 1, 4, 6, 0, 2):
        got = reader.__getitems__(Wanted(lease, 0, i))
        wanted = expected[i] if i < 5 else []
        assert len(got) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_reader_crosses_processes_without_what_it_has_open():
    reader = ShardReader(Numbers(), [(0, 7)], batch_size=2, drop_last=False, seed=7)
    reader.__getitems__(Wanted(BatchKey(0, 0), 0, 0))
    copy = pickle.loads(pickle.dumps(reader))
    assert copy._open is None
    assert len(copy.__getitems__(Wanted(BatchKey(0, 0), 0, 3))) == 1


def test_a_reader_that_failed_does_not_take_the_broken_shard_for_an_empty_one():
    reader = ShardReader(Files(poison=0), [(0, 7)], batch_size=2, drop_last=False, seed=7)
    for _ in range(2):
        with pytest.raises(ValueError, match="sample 0 cannot"):
            reader.__getitems__(Wanted(BatchKey(0, 0), 0, 0))


def test_what_make_gives_must_be_iterable():
    with pytest.raises(UsageError, match=r"make\(\(0, 3\)\) gave a int"):
        list(stream(TaskPool(), make=lambda shard: 5, sizes=[3]))


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_the_generators_of_the_process_are_left_alone(options):
    loader = stream(TaskPool(), **options)
    before = generators()
    assert len(list(loader)) == 10
    assert generators() == before


# --- as a DataLoader -------------------------------------------------------------------------


def test_it_says_what_an_epoch_is_and_has_no_length():
    pool = TaskPool()
    loader = stream(pool, drop_last=True)
    assert pool.batches == 5
    assert pool.settings | {"content": ""} == {
        "shards": "5",
        "shuffle": "False",
        "seed": "7",
        "batch_size": "2",
        "drop_last": "True",
        "sealed": "no",
        "content": "",
    }
    assert (loader.batch_size, loader.drop_last) == (2, True)
    with pytest.raises(TypeError, match="no len"):
        len(loader)


def test_a_worker_with_other_shards_is_refused():
    pool = TaskPool()
    stream(pool)
    with pytest.raises(SettingsMismatch, match="content is"):
        stream(pool, "w1", sizes=[5, 0, 8, 1, 4])
    stream(pool, "w2")


def test_pin_memory_reaches_torch():
    loader = stream(TaskPool(), pin_memory=True)
    if torch.accelerator.is_available():
        assert all(batch.is_pinned() for batch in loader)
    else:
        with pytest.warns(UserWarning, match="no accelerator is found"):
            assert len(list(loader)) == 10
