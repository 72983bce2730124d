"""even=True: passes of one length, for those who believe len()."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worker.loaders import FORKED, HERE_OR_FORKED, draw, make
from worker.local_tasks import TaskPool
from worker.test_loader import interleave

from hubring_common.ids import BatchKey


def worker(pool, name, workers, batches=10, **options):
    data = list(range(batches))
    options = {"workers_hint": lambda: workers, "batch_size": 1} | options
    return make(pool, name, data, even=True, digest=False, **options)


@settings(deadline=None, max_examples=60)
@given(
    batches=st.integers(1, 20),
    count=st.integers(1, 4),
    span=st.integers(1, 3),
    turns=st.lists(st.integers(0, 3), max_size=60),
)
def test_every_pass_has_len_batches_and_the_data_is_one_stream(batches, count, span, turns):
    """Whatever the speeds: the batches trained are the first ones of epoch after epoch."""
    pool = TaskPool(span)
    workers = [worker(pool, f"w{i}", count, batches) for i in range(count)]
    length = max(1, batches // count)
    assert [len(loader) for loader in workers] == [length] * count
    passes = 3
    keys = []
    runs = [Passes(loader, passes) for loader in workers]
    for loader, batch in interleave(runs, iter(turns)):
        ((key,), _) = loader.take_delivered()
        assert key.batch == batch.item()
        keys.append(key)
    assert [run.counts for run in runs] == [[length] * passes] * count
    total = passes * length * count
    whole, rest = divmod(total, batches)
    stream = [BatchKey(e, b) for e in range(whole + 1) for b in range(batches)]
    assert len(keys) == len(set(keys)) == total
    if span == 1:  # who holds more than it trains leaves a gap that others go round
        assert sorted(keys) == stream[: whole * batches + rest]


class Passes:
    """Several passes of a loader as one iterable; counts the batches of each."""

    def __init__(self, loader, passes):
        self.loader, self.passes, self.counts = loader, passes, []
        self.take_delivered = loader.take_delivered

    def __iter__(self):
        for _ in range(self.passes):
            self.counts.append(0)
            for batch in self.loader:
                self.counts[-1] += 1
                yield batch


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_the_remainder_goes_to_the_next_pass(options):
    pool = TaskPool(span=1)
    loader = worker(pool, "w0", 3, **options)
    for _ in range(4):
        assert len(list(loader)) == len(loader) == 3
    loader.give_back()
    keys, _ = loader.take_delivered()
    assert list(keys) == [*(BatchKey(0, k) for k in range(10)), BatchKey(1, 0), BatchKey(1, 1)]


def test_nobody_waits_at_an_uneven_end():
    """Three workers in threads, ten batches: each gets its three, three times."""
    pool, lock, counts = TaskPool(span=1), threading.Lock(), []
    take = pool.grant
    pool.grant = lambda name, epoch: locked(lock, take, name, epoch)

    def work(name):
        loader = worker(pool, name, 3)
        counts.append([len(list(loader)) for _ in range(3)])

    threads = [threading.Thread(target=work, args=(f"w{i}",), daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "it waits"
    assert counts == [[3, 3, 3]] * 3


def locked(lock, call, *arguments):
    with lock:
        return call(*arguments)


def test_len_is_believed_so_it_stays_as_it_was_at_first():
    workers = 2
    loader = make(TaskPool(), dataset=list(range(10)), even=True, workers_hint=lambda: workers)
    workers = 5
    assert len(loader) == 5
    assert len(list(loader)) == 5


def test_set_epoch_says_where_the_first_pass_begins_and_no_more():
    loader = worker(TaskPool(span=1), "w0", 3)
    for epoch in (4, 5, 9):
        loader.set_epoch(epoch)
        list(loader)
    keys, _ = loader.take_delivered()
    assert list(keys) == [BatchKey(4, k) for k in range(9)]


def test_with_fewer_batches_than_workers_each_gets_one():
    pool = TaskPool(span=1)
    loaders = [worker(pool, f"w{i}", 5, batches=2) for i in range(5)]
    assert [[len(list(loader)) for _ in range(2)] for loader in loaders] == [[1, 1]] * 5


def test_what_a_break_gives_back_is_trained_by_the_next_pass():
    pool = TaskPool(span=3)
    loader = worker(pool, "w0", 1, batches=6)
    batches = iter(loader)
    next(batches)
    other = worker(pool, "w1", 1, batches=6)
    list(other)  # it goes on to epoch 1 for want of batches of epoch 0
    assert {key.epoch for key in other.take_delivered()[0]} == {0, 1}
    rest = list(loader)
    keys, _ = loader.take_delivered()
    assert keys[:3] == ((0, 0), (0, 1), (0, 2))
    assert len(rest) == 6


def test_a_pass_that_read_ahead_into_the_next_epoch_gives_back_and_begins_before_it():
    pool = TaskPool(span=1)
    other = worker(pool, "w1", 4, batches=4)
    assert len(list(other)) == 1
    loader = worker(pool, "w0", 1, batches=4, **FORKED)
    draw(loader, 1)  # and batches 2 and 3 of epoch 0, and one of epoch 1, ahead
    loader.give_back()
    asked, grant = [], pool.grant
    pool.grant = lambda name, epoch: asked.append(epoch) or grant(name, epoch)
    assert len(list(loader)) == 4
    assert asked[0] == 0
    keys, _ = loader.take_delivered()
    assert keys == ((0, 1), (0, 2), (0, 3), (1, 0), (1, 1))


def test_a_drained_even_loader_ends():
    pool = TaskPool()
    loader = worker(pool, "w0", 2)
    assert len(list(loader)) == 5
    pool.is_draining = True
    assert list(loader) == []


def test_an_even_worker_beside_one_that_is_not_is_refused():
    pool = TaskPool()
    worker(pool, "w0", 2)
    with pytest.raises(Exception, match="even is False here, True in the run"):
        make(pool, "w1", list(range(10)), digest=False)


def test_a_users_sampler_can_be_even_too():
    loader = worker(TaskPool(span=1), "w0", 3, sampler=list(reversed(range(10))))
    assert [batch.tolist() for batch in loader] == [[9], [8], [7]]
    assert torch.equal(next(iter(loader)), torch.tensor([6]))
