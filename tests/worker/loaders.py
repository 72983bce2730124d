"""Loaders over a pool of tasks, as the tests of the loader make them."""

import pytest
from worker.noisy import Noisy

from hubring_worker.loader import HubLoader

FORKED = {"num_workers": 2, "multiprocessing_context": "fork"}
PERSISTENT = FORKED | {"persistent_workers": True, "prefetch_factor": 4}
SPAWNED = {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True}
HERE_OR_FORKED = [
    pytest.param({}, id="here"),
    pytest.param(FORKED, id="fork"),
    pytest.param(PERSISTENT, id="persistent"),
]


def make(pool, name="w0", dataset=None, **options):
    options = {"seed": 7, "workers_hint": lambda: 1} | options
    return HubLoader(pool.worker(name), Noisy(22) if dataset is None else dataset, **options)


def one_key(loader):
    """The key of the one batch handed out since the last call."""
    ((key,), _) = loader.take_delivered()
    return key


def draw(loader, count):
    batches = iter(loader)
    return [next(batches) for _ in range(count)]
