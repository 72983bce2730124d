"""The leased loader as a DataLoader: its surface, and what it refuses."""

import gc
import pickle

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
)
from worker.loaders import draw, make
from worker.local_tasks import TaskPool
from worker.noisy import Noisy

from hubring_common.errors import SettingsMismatch, UsageError
from hubring_common.ids import BatchKey
from hubring_common.messages import Span
from hubring_worker.seeding import Keyed, SeededDataset


@pytest.fixture(autouse=True)
def _no_process_stays():
    """Persistent loader processes end with their loader, so within the test that made it."""
    yield
    gc.collect()


# --- as a DataLoader -------------------------------------------------------------------------


def test_it_is_a_dataloader_and_says_what_an_epoch_is():
    pool = TaskPool()
    assert isinstance(make(pool, batch_size=4), DataLoader)
    assert pool.batches == 6
    assert pool.settings == {
        "batch_size": "4",
        "shuffle": "False",
        "drop_last": "False",
        "samples": "22",
        "seed": "7",
        "even": "False",
        "sealed": "no",
        "content": pool.settings["content"],
    }
    assert len(pool.settings["content"]) == 16


def test_a_worker_with_other_data_is_refused():
    pool = TaskPool()
    make(pool, batch_size=4)
    with pytest.raises(SettingsMismatch, match="batch_size is 8 here, 4 in the run"):
        make(pool, "w1", batch_size=8)


def test_len_is_the_share_as_it_was_when_the_iteration_began():
    workers = 1
    loader = make(TaskPool(), batch_size=4, workers_hint=lambda: workers)
    assert len(loader) == 6
    workers = 4
    assert len(loader) == 2
    batches = iter(loader)
    workers = 0  # the members are not known yet
    assert len(loader) == 2
    assert len(list(batches)) == 6
    assert len(loader) == 2
    iter(loader)
    assert len(loader) == 6


def test_set_epoch_says_where_the_count_goes_on():
    loader = make(TaskPool(), batch_size=4)
    loader.set_epoch(5)
    for epoch in (5, 6):
        list(loader)
        assert {key.epoch for key in loader.take_delivered()[0]} == {epoch}
    with pytest.raises(UsageError, match="below 0"):
        loader.set_epoch(-1)


def test_an_iteration_that_cannot_begin_does_not_count():
    pool = TaskPool()
    loader = make(pool, batch_size=4)
    draw(loader, 1)
    held = dict(pool.leased)
    pool.leased.clear()
    with pytest.raises(KeyError):
        iter(loader)
    pool.leased |= held
    list(loader)
    assert {key.epoch for key in loader.take_delivered()[0]} == {0, 1}
    assert not pool.returned


def test_frameworks_find_the_users_batch_size():
    loader = make(TaskPool(), batch_size=4, drop_last=True)
    assert (loader.batch_size, loader.drop_last) == (4, True)
    assert loader.collate_fn is DataLoader(Noisy(1)).collate_fn
    assert len(loader.dataset) == 22


def test_pin_memory_reaches_torch():
    loader = make(TaskPool(), batch_size=4, pin_memory=True)
    if torch.accelerator.is_available():
        assert all(batch.is_pinned() for batch in loader)
    else:
        with pytest.warns(UserWarning, match="no accelerator is found"):
            list(loader)


def test_a_data_set_that_reads_whole_batches_is_asked_for_them():
    class Whole(Subset):
        def __getitems__(self, indices):
            assert isinstance(indices, Keyed)
            return super().__getitems__(indices)

    loader = make(TaskPool(), dataset=Whole(range(10, 20), range(10)), batch_size=5)
    assert torch.cat(list(loader)).tolist() == list(range(10, 20))


def test_the_wrapped_data_set_shows_the_users_attributes():
    dataset = Noisy(22)
    wrapped = make(TaskPool(), dataset=dataset).dataset
    assert wrapped.samples == 22
    wrapped.samples = 5
    assert dataset.samples == 5
    copy = pickle.loads(pickle.dumps(wrapped))
    assert isinstance(copy, SeededDataset)
    assert len(copy) == 5
    assert copy[3][0] == 3
    with pytest.raises(AttributeError, match="classes"):
        _ = copy.classes


def test_a_wrapped_data_set_serves_a_plain_loader_too():
    wrapped = make(TaskPool()).dataset
    assert torch.cat(list(DataLoader(wrapped, 4)))[:, 0].tolist() == list(range(22))


def test_a_keyed_batch_crosses_processes():
    batch = pickle.loads(pickle.dumps(Keyed([3, 1], BatchKey(2, 5), 2**64 - 1)))
    assert (batch, batch.key, batch.seed) == ([3, 1], BatchKey(2, 5), 2**64 - 1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Unsized:
    def __getitem__(self, index):
        return index


DATA = list(range(8))
SPLIT = DistributedSampler(DATA, num_replicas=2, rank=0)
SAMPLER = RandomSampler(DATA)


@pytest.mark.parametrize(
    ("options", "fact", "todo"),
    [
        ({"dataset": Stream()}, "Stream is an IterableDataset; .* shards", "make, shards="),
        ({"dataset": Stream(), "shards": [1]}, "Stream must be called", "__call__"),
        ({"dataset": Stream, "shards": []}, "shards is empty", "path"),
        ({"dataset": Stream, "shards": 3}, "shards=int is not a list", "sorted"),
        ({"dataset": Stream, "shards": "ab"}, "shards=str is not a list", "sorted"),
        ({"dataset": Stream, "shards": {"a"}}, "shards=set is not a list", "sorted"),
        ({"dataset": Stream, "shards": {"a": 1}}, "shards=dict is not a list", "sorted"),
        ({"dataset": Stream, "shards": [1], "even": True}, "even=True needs", "number of steps"),
        ({"dataset": Stream, "shards": [1], "sampler": [0]}, "a sampler picks", "make"),
        ({"dataset": Stream, "shards": [1], "batch_size": 0}, "batch_size=0", "such as 64"),
        ({"dataset": Unsized()}, "Unsized lacks __len__", "map-style"),
        ({"dataset": []}, "list is empty", "filters"),
        ({"sampler": SPLIT}, "DistributedSampler would split", "shuffle=True"),
        ({"batch_sampler": BatchSampler(SPLIT, 2, drop_last=False)}, "would split", "shuffle"),
        ({"sampler": SAMPLER, "shuffle": True}, "both set the order", "one of the two"),
        ({"batch_sampler": [[0]], "batch_size": 2}, "says already", "batch_size"),
        ({"batch_sampler": [[0]], "drop_last": True}, "says already", "drop_last"),
        ({"batch_sampler": [[0]], "sampler": [0]}, "says already", "sampler"),
        ({"in_order": False}, "in_order=False", "Leave in_order out"),
        ({"generator": torch.Generator()}, "generator= cannot set the order", "another seed"),
        ({"batch_size": 0}, "batch_size=0 is not a positive int", "such as 64"),
        ({"batch_size": None}, "batch_size=None", "such as 64"),
        ({"batch_size": True}, "batch_size=True", "such as 64"),
        ({"batch_size": 2.0}, "batch_size=2.0", "such as 64"),
        ({"batch_size": 9, "drop_last": True}, "no batch: 8 samples, batch_size 9", "smaller"),
    ],
)
def test_what_a_lease_cannot_hold_is_refused(options, fact, todo):
    pool = TaskPool()
    with pytest.raises(UsageError, match=fact) as refused:
        make(pool, **({"dataset": DATA} | options))
    assert todo in refused.value.todo
    assert not pool.settings, "it was declared all the same"


def test_options_left_at_torchs_defaults_are_no_matter():
    options = {"sampler": None, "batch_sampler": None, "generator": None, "in_order": True}
    assert len(list(make(TaskPool(), dataset=DATA, batch_size=3, shuffle=None, **options))) == 3


def test_a_span_is_drawn_whole_before_the_next_is_leased():
    pool = TaskPool(span=3)
    loader = make(pool, batch_size=4)
    draw(loader, 3)
    assert pool.held_by("w0") == set(Span(0, 0, 3).keys())
