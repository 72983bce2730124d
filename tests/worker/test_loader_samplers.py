"""A sampler or batch sampler of the user's own: the same list on every worker, or a refusal."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from worker.loaders import FORKED, HERE_OR_FORKED, make, one_key
from worker.local_tasks import TaskPool
from worker.test_loader import by_key, generators

from hubring_common.errors import SettingsMismatch, UsageError

DATA = list(range(22))


class Own(Sampler):
    """Draws its order with `draw(n)`; `lengths` of the epochs, the last one for the rest."""

    def __init__(self, draw=lambda n: list(range(n)), lengths=(22,)):
        self.draw, self.lengths, self.epoch = draw, lengths, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.lengths[min(self.epoch, len(self.lengths) - 1)]

    def __iter__(self):
        return iter(self.draw(len(self)))


def numpys(n):
    return np.random.permutation(n).tolist()  # noqa: NPY002


def pythons(n):
    return random.sample(range(n), n)


def weighted(generator=None):
    return WeightedRandomSampler([1.0 + i for i in range(22)], 17, generator=generator)


SAMPLERS = [
    pytest.param(lambda: RandomSampler(DATA), id="RandomSampler"),
    pytest.param(lambda: RandomSampler(DATA, generator=torch.Generator()), id="generator"),
    pytest.param(lambda: SubsetRandomSampler(range(3, 20)), id="SubsetRandomSampler"),
    pytest.param(weighted, id="WeightedRandomSampler"),
    pytest.param(lambda: weighted(torch.Generator().manual_seed(3)), id="weighted generator"),
    pytest.param(lambda: Own(numpys), id="numpy"),
    pytest.param(lambda: Own(pythons), id="random"),
    pytest.param(lambda: list(reversed(DATA)), id="list"),
]


def of_batches(sampler):
    return {"batch_sampler": BatchSampler(sampler, 4, drop_last=False)}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("how", [lambda s: {"sampler": s, "batch_size": 4}, of_batches])
def test_two_workers_get_parts_of_one_list_whatever_they_drew_before(sampler, how):
    expected = by_key([make(TaskPool(), dataset=DATA, **how(sampler()))], epochs=2)
    pool = TaskPool()
    loaders = []
    for i in range(2):
        torch.manual_seed(i)
        random.seed(i)
        np.random.seed(i)  # noqa: NPY002
        loaders.append(make(pool, f"w{i}", dataset=DATA, **how(sampler())))
    got = by_key(loaders, epochs=2)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_random_orders_differ_between_epochs():
    for sampler in (RandomSampler(DATA), Own(numpys)):
        loader = make(TaskPool(), dataset=DATA, batch_size=22, sampler=sampler)
        (first,), (second,) = loader, loader
        assert first.tolist() != second.tolist()
        assert sorted(first.tolist()) == sorted(second.tolist()) == DATA


def test_the_sampler_and_the_process_keep_their_generators():
    generator = torch.Generator().manual_seed(5)
    before, own = generators(), generator.get_state()
    loader = make(TaskPool(), dataset=DATA, batch_size=4, sampler=weighted(generator))
    assert len(list(loader)) == 5
    assert generators() == before
    assert torch.equal(generator.get_state(), own)


def test_a_joiner_that_missed_epochs_has_the_same_list():
    pool = TaskPool()
    sampler = RandomSampler(DATA, generator=torch.Generator())
    early = make(pool, dataset=DATA, batch_size=4, sampler=sampler)
    for _ in range(3):
        list(early)
    early.take_delivered()
    expected = {one_key(early): batch for batch in early}
    sampler = RandomSampler(DATA, generator=torch.Generator().manual_seed(9))
    late = make(TaskPool(), dataset=DATA, batch_size=4, sampler=sampler)
    late.set_epoch(3)
    assert all(torch.equal(batch, expected[one_key(late)]) for batch in late)


@pytest.mark.parametrize("options", HERE_OR_FORKED)
def test_batches_of_uneven_size_are_what_the_batch_sampler_says(options):
    batches = [[3], [1, 2, 5], [0, 4]]
    loader = make(TaskPool(), dataset=DATA, batch_sampler=batches, **options)
    assert [batch.tolist() for batch in loader] == batches
    assert loader.take_delivered()[1] == 6
    assert len(loader) == 3
    assert (loader.batch_size, loader.drop_last) == (None, False)


def test_drop_last_cuts_a_samplers_rest():
    loader = make(TaskPool(), dataset=DATA, sampler=range(10), batch_size=4, drop_last=True)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_set_epoch_reaches_the_sampler_inside():
    class Turning(Own):
        def __iter__(self):
            return iter([(i + self.epoch) % 22 for i in range(22)])

    inner = BatchSampler(Turning(), 11, drop_last=False)
    loader = make(TaskPool(), dataset=DATA, batch_sampler=inner, **FORKED)
    for epoch in (0, 3, 1):
        loader.set_epoch(epoch)
        assert [batch[0].item() for batch in loader] == [epoch, epoch + 11]


# --- what is refused -------------------------------------------------------------------------


def test_another_workers_sampler_is_refused():
    pool = TaskPool()
    make(pool, dataset=DATA, sampler=weighted(), batch_size=4)
    with pytest.raises(SettingsMismatch, match="sampler is WeightedRandomSampler"):
        make(pool, "w1", dataset=DATA, sampler=WeightedRandomSampler([1.0] * 22, 17), batch_size=4)


class Growing(Own):
    """Keeps from one iteration to the next what no other worker can know."""

    kept = 0

    def __iter__(self):
        self.kept += 1
        return iter([(i + self.kept) % 22 for i in range(22)])


class Endless(Own):
    def __iter__(self):
        while True:
            yield 0


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"sampler": Growing()}, "Growing gave two orders for the same seed and epoch"),
        ({"sampler": Own(np.random.default_rng(0).permutation)}, "Own gave two orders"),
        ({"sampler": iter(DATA)}, "list_iterator has no len"),
        ({"sampler": Endless()}, "Endless gives more than its len"),
        ({"sampler": []}, "list gives no batch"),
        ({"batch_sampler": [[1], []]}, "list gives no batch, or an empty one"),
        ({"sampler": Own(lengths=(22, 20))}, "Own gives 5 batches in epoch 1, 6 in epoch 0"),
    ],
)
def test_a_sampler_that_workers_cannot_share_is_refused(options, fact):
    pool = TaskPool()
    size = {} if "batch_sampler" in options else {"batch_size": 4}
    with pytest.raises(UsageError, match=fact):
        make(pool, dataset=DATA, **size, **options)
    assert not pool.settings


def test_an_epoch_of_another_length_is_refused_when_it_comes():
    loader = make(TaskPool(), dataset=DATA, batch_size=4, sampler=Own(lengths=(22, 22, 12)))
    assert len(list(loader)) == len(list(loader)) == 6
    with pytest.raises(UsageError, match="Own gives 3 batches in epoch 2, 6 in epoch 0"):
        list(loader)
