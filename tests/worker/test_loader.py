import gc
import random
import traceback
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
)
from worker.loaders import FORKED, HERE_OR_FORKED, PERSISTENT, SPAWNED, draw, make, one_key
from worker.local_tasks import TaskPool
from worker.noisy import Noisy, collate_with_noise

from hubring_common.errors import UsageError
from hubring_common.ids import BatchKey
from hubring_common.messages import Span, spans_of
from hubring_worker.seeding import kept_generators, mix, seed_generators


@pytest.fixture(autouse=True)
def _no_process_stays():
    """Persistent loader processes end with their loader, so within the test that made it."""
    yield
    gc.collect()


def generators():
    numpy = np.random.get_state()  # noqa: NPY002 - the global one is the matter
    return random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()


# --- exactly once ----------------------------------------------------------------------------


def interleave(loaders, turns):
    """Draws one pass of each loader, in the order that `turns` picks among those not at an end.

    Yields the loader and its batch.
    """
    going = [(loader, iter(loader)) for loader in loaders]
    while going:
        loader, batches = turn = going[next(turns, 0) % len(going)]
        batch = next(batches, None)
        if batch is None:
            going.remove(turn)
        else:
            yield loader, batch


@st.composite
def data_options(draw):
    samples, batch_size = draw(st.integers(1, 40)), draw(st.integers(1, 7))
    return samples, {
        "batch_size": batch_size,
        "drop_last": batch_size <= samples and draw(st.booleans()),
        "shuffle": draw(st.booleans()),
    }


@settings(deadline=None, max_examples=80)
@given(
    data=data_options(),
    span=st.integers(1, 4),
    loaders=st.integers(1, 3),
    turns=st.lists(st.integers(0, 2)),
)
def test_every_sample_once_an_epoch(data, span, loaders, turns):
    samples, options = data
    pool = TaskPool(span)
    workers = [make(pool, f"w{i}", list(range(samples)), **options) for i in range(loaders)]
    in_sequence = options | {"shuffle": False}
    plain = [batch.tolist() for batch in DataLoader(range(samples), **in_sequence)]
    for epoch in range(2):
        seen = {}
        for loader, batch in interleave(workers, iter(turns)):
            ((key,), count) = loader.take_delivered()
            assert count == len(batch)
            assert key not in seen
            seen[key] = batch.tolist()
        assert sorted(seen) == [BatchKey(epoch, k) for k in range(len(plain))]
        in_order = [seen[key] for key in sorted(seen)]
        assert list(map(len, in_order)) == list(map(len, plain))
        if not options["shuffle"]:
            assert in_order == plain
        assert max(Counter(i for batch in in_order for i in batch).values()) == 1


def test_an_order_is_the_permutation_of_seed_and_epoch():
    """Written out: workers of another release or machine must shuffle alike."""
    loader = make(TaskPool(), dataset=list(range(100)), batch_size=8, shuffle=True)
    for epoch in range(2):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(mix(7, epoch)))
        assert torch.equal(torch.cat(list(loader)), order)
    assert mix(7, 0) == 2912455175701608280
    assert mix(7, 0, 3) == 18060992021620969879


# --- alike whoever trains them ---------------------------------------------------------------


def by_key(loaders, epochs):
    """Each key's batch, drawn in turns by the loaders."""
    return {
        one_key(loader): batch
        for _ in range(epochs)
        for loader, batch in interleave(loaders, iter([0, 1] * 30))
    }


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        pytest.param(2, {}, id="here"),
        pytest.param(2, FORKED, id="fork"),
        pytest.param(2, PERSISTENT, id="persistent"),
        pytest.param(1, SPAWNED, id="spawn"),
    ],
)
def test_a_batch_is_the_same_whoever_reads_it(workers, options):
    """Samples, their augmentation and that of collate_fn, over two epochs."""
    data = {"batch_size": 4, "shuffle": True, "collate_fn": collate_with_noise}
    expected = by_key([make(TaskPool(), **data)], epochs=2)
    pool = TaskPool()
    loaders = [make(pool, f"w{i}", **data, **options) for i in range(workers)]
    got = by_key(loaders, epochs=2)
    assert got.keys() == expected.keys() == {BatchKey(e, k) for e in (0, 1) for k in range(6)}
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_augmentation_differs_between_samples_batches_epochs_and_generators():
    loader = make(TaskPool(), batch_size=4)
    drawn = torch.cat([*loader, *loader])[:, 1:]
    assert drawn.unique().numel() == drawn.numel() == 2 * 22 * 3


@given(seed=st.integers(0, 2**64 - 1).filter(lambda seed: seed >> 32 != seed & 0xFFFF_FFFF))
def test_numpy_and_torch_do_not_draw_the_same_words(seed):
    with kept_generators():
        seed_generators(seed)
        words = np.frombuffer(np.random.bytes(32), np.uint32)  # noqa: NPY002
        assert (words % 2**16).tolist() != torch.randint(0, 2**16, (8,)).tolist()


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_the_generators_of_the_process_are_left_alone(options):
    loader = make(TaskPool(), batch_size=4, shuffle=True, collate_fn=collate_with_noise, **options)
    before = generators()
    assert len(list(loader)) == 6
    assert generators() == before


def test_the_generators_survive_a_sample_that_raises():
    loader = make(TaskPool(), dataset=Noisy(8, poison=5), batch_size=4)
    before = generators()
    with pytest.raises(ValueError, match="sample 5"):
        list(loader)
    assert generators() == before


# --- leases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_after_a_break_the_rest_goes_back_and_only_delivered_ones_count(options):
    pool = TaskPool()
    loader = make(pool, dataset=Noisy(100), batch_size=5, **options)
    draw(loader, 3)
    delivered = {BatchKey(0, k) for k in range(3)}
    assert pool.held_by("w0") >= delivered
    keys, samples = loader.take_delivered()
    assert (set(keys), samples) == (delivered, 15)
    loader.give_back()
    assert pool.held_by("w0") == delivered
    assert loader.take_delivered() == ((), 0)


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_the_next_iteration_returns_what_was_read_ahead_and_trains_it(options):
    pool = TaskPool()
    loader = make(pool, dataset=Noisy(100), batch_size=5, **options)
    draw(loader, 3)
    loader.set_epoch(0)
    indices = [batch[:, 0].tolist() for batch in loader]
    keys, samples = loader.take_delivered()
    assert sorted(keys) == [BatchKey(0, k) for k in range(20)]
    assert samples == 100
    assert indices == [[5 * k + i for i in range(5)] for _, k in keys[3:]]
    assert pool.held_by("w0") == set(keys)


def test_reading_ahead_leases_no_more_than_the_processes_hold():
    pool = TaskPool(span=1)
    loader = make(pool, dataset=Noisy(200), batch_size=5, **PERSISTENT)
    draw(loader, 1)
    assert len(pool.held_by("w0")) == 2 * 4 + 1


def test_a_dead_workers_batches_keep_their_epochs_order():
    data = {"batch_size": 4, "shuffle": True}
    expected = by_key([make(TaskPool(), **data)], epochs=2)
    pool = TaskPool(span=2)
    dead, alive = make(pool, "dead", **data), make(pool, "alive", **data)
    draw(dead, 1)
    assert len(list(alive)) == 4
    alive.take_delivered()
    pool.bury("dead")
    got = {one_key(alive): batch for batch in alive}
    assert list(got) == [BatchKey(0, 0), BatchKey(0, 1), *(BatchKey(1, k) for k in range(6))]
    assert all(torch.equal(batch, expected[key]) for key, batch in got.items())


def test_a_drained_loader_ends_after_what_is_in_hand():
    pool = TaskPool(span=3)
    loader = make(pool, batch_size=4)
    batches = iter(loader)
    next(batches)
    pool.is_draining = True
    assert len(list(batches)) == 2
    assert pool.held_by("w0") == set(loader.take_delivered()[0])


def test_a_finished_epoch_is_empty_and_starts_no_process():
    pool = TaskPool()
    list(make(pool, batch_size=4))
    late = make(pool, "late", batch_size=4, **PERSISTENT)
    assert list(late) == []
    assert late._iterator is None
    assert len(list(late)) == 6
    assert late.take_delivered()[0][0] == BatchKey(1, 0)


def error_of(batches):
    """Reads until an error, and drops it: torch's frames hold it and it them, and processes
    that are left to the collector end 5 s late each."""
    try:
        list(batches)
    except ValueError as error:
        traceback.clear_frames(error.__traceback__)
        return str(error)
    return ""


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_a_batch_that_cannot_be_read_is_not_delivered(options):
    pool = TaskPool()
    loader = make(pool, dataset=Noisy(40, poison=9), batch_size=4, **options)
    batches = iter(loader)
    assert "sample 9" in error_of(batches)
    assert next(batches, None) is None
    loader.give_back()
    assert pool.held_by("w0") == set(loader.take_delivered()[0]) == {(0, 0), (0, 1)}


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_an_iteration_ends_when_another_begins(options):
    pool = TaskPool()
    loader = make(pool, dataset=Noisy(100), batch_size=4, **options)
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(UsageError, match="its batches went back"):
        next(first)
    next(second)
    keys, _ = loader.take_delivered()
    assert keys == ((0, 0), (0, 1))  # those that went back are due before epoch 1


def test_the_batch_sampler_is_of_no_use_alone():
    loader = make(TaskPool(), batch_size=4)
    other = DataLoader(Noisy(22), batch_sampler=loader.batch_sampler)
    with pytest.raises(UsageError, match="without its loader"):
        next(iter(other))
    assert len(list(loader)) == 6
    with pytest.raises(UsageError, match="without its loader"):
        next(iter(other))


@given(keys=st.lists(st.builds(BatchKey, st.integers(0, 1), st.integers(0, 5))))
def test_spans_hold_the_keys_in_order_and_no_two_join(keys):
    spans = spans_of(keys)
    assert list(chain.from_iterable(map(Span.keys, spans))) == keys
    for a, b in pairwise(spans):
        assert (a.epoch, a.first + a.count) != (b.epoch, b.first)
