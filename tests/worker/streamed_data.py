"""Streams of numbered samples, and servers that count each batch once, as the tests use them."""

import torch
from torch.utils.data import IterableDataset
from worker.local_tasks import TaskPool
from worker.noisy import noise

from hubring_common.ids import BatchKey
from hubring_worker.loader import HubLoader

SHARDS = [5, 0, 8, 1, 3]
"""Samples of each shard; the samples of shard s are 100 s, 100 s + 1, ..."""


def ids(sizes=SHARDS):
    return [100 * shard + i for shard, size in enumerate(sizes) for i in range(size)]


class Numbers(IterableDataset):
    """Called with (shard, samples): the sample's id and three random numbers each."""

    def __iter__(self):
        raise NotImplementedError("it is read by the shard")

    def __call__(self, shard):
        number, size = shard
        for i in range(size):
            yield torch.cat([torch.tensor([100.0 * number + i]), noise()])


class Files:
    """A make that counts the shards opened and closed, and can fail at a sample."""

    def __init__(self, poison=None):
        self.poison, self.opened, self.closed = poison, [], []

    def __call__(self, shard):
        number, size = shard
        self.opened.append(number)
        try:
            for i in range(size):
                if 100 * number + i == self.poison:
                    raise ValueError(f"sample {self.poison} cannot be read")
                yield 100 * number + i
        finally:
            self.closed.append(number)


def stream(pool, name="w0", make=None, sizes=SHARDS, **options):
    options = {"seed": 7, "workers_hint": lambda: 1, "batch_size": 2} | options
    shards = list(enumerate(sizes))
    return HubLoader(pool.worker(name), make or Numbers(), shards=shards, **options)


class Servers:
    """Every server of a hub in one: what they hold as done, and the coordinator told of it."""

    def __init__(self, pool: TaskPool):
        self.pool = pool
        self.done: dict[BatchKey, list[int]] = {}

    def step(self, loader, name="w0", batch=None, heard=True):
        """Push what was delivered. Returns the keys that were done before."""
        keys, samples = loader.take_delivered()
        again = [key for key in keys if key in self.done]
        if batch is not None:
            assert samples == len(batch)
            self.done |= {key: _ids(batch) for key in keys if key not in self.done}
        if heard:
            self.tell(loader, name, keys)
        return again

    def tell(self, loader, name="w0", done=(), returned=()):
        over, again = loader.leases_of(done, returned)
        self.pool.finish(name, over)
        if again:
            self.pool.take_back(name, again)

    def samples(self, epoch=0):
        found = [s for key, batch in self.done.items() if key.epoch == epoch for s in batch]
        return sorted(found)


def _ids(batch):
    column = batch[:, 0] if batch.ndim > 1 else batch
    return [int(i) for i in column]


def train(loader, servers, name="w0", epochs=1):
    """Whole passes; what ended after its last step is told at the end."""
    for _ in range(epochs):
        for batch in loader:
            servers.step(loader, name, batch)
    servers.tell(loader, name)
