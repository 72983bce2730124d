"""Data in shards over a whole cluster: a worker dies mid-shard, and each sample counts once."""

import time

import torch
from torch import nn
from whole import cluster
from worker.streamed_data import ids
from worker.test_run import side_by_side

from hubring_common.ids import BatchKey
from hubring_worker.streams import shard_of

SIZES = [9, 4, 0, 12, 7, 2]
BATCH = 2


def numbers(shard):
    number, size = shard
    for i in range(size):
        yield torch.tensor(float(100 * number + i)), torch.rand(2)


class Part:
    """One worker's script, a step at a time. `seen`: the samples of each key that it drew."""

    def __init__(self, whole):
        # No loader processes: a whole cluster in one process is no place to fork from.
        self.run = whole.join()
        shards = list(enumerate(SIZES))
        self.loader = self.run.loader(numbers, shards=shards, batch_size=BATCH, shuffle=True)
        self.model = nn.Linear(2, 1)
        sgd = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.optimizer = self.run.optimizer(sgd, self.model)
        self.seen, self.lost = {}, None

    def step(self, batch):
        names, inputs = batch
        key, samples = self.loader._feed._delivered[-1]
        assert samples == len(names)
        self.seen[key] = names.tolist()
        self.optimizer.zero_grad()
        self.model(inputs).square().mean().backward()
        self.optimizer.step()

    def train(self, epochs=1):
        for _ in range(epochs):
            for batch in self.loader:
                self.step(batch)

    def leases(self):
        return {shard_of(key)[0] for key in self.seen}

    def end(self):
        self.run.finish()
        self.run.close()

    def push_to_one_server(self, batch):
        """A step that its worker does not live to finish."""
        hub = self.run._hub
        hub._links = hub._links[:1]
        hub._settle = lambda *_: None
        hub._lanes.map = lambda calls: [calls[0]()]
        self.step(batch)

    def die(self, epochs):
        """Without a word; but what it took ahead of later epochs than the others will train
        would be missed, so that goes back.
        """
        session = self.run._session
        for epoch in {key.epoch for key in session._leased if key.epoch >= epochs}:
            session.give_back(session._stock.recall(epoch, len(SIZES)))
        order = self.loader._feed._order
        self.lost = {key for key in session._leased if SIZES[order.number(key)]}
        session.close()
        self.run._closed = True


def held(run, epochs):
    """The shards of these epochs that the worker holds; it may have taken others ahead."""
    return [lease for lease in run._session._leased if lease.epoch < epochs]


def done_of(whole):
    """The keys that each server holds as done, and how many pushes brought them."""
    for server in whole.servers:
        for host in server._shards.values():
            machine = host._machine
            keys = {
                BatchKey(chunk.epoch, (chunk.batch << 12) + i)
                for chunk, bits in machine.done.snapshot().items()
                for i in range(8 * len(bits))
                if bits[i >> 3] >> (i & 7) & 1
            }
            yield keys, machine.keys_logged


def has_taken_over(alive, dead):
    """Whether all that the dead worker held has come to the other, but for empty shards."""
    return dead is not None and dead.lost is not None and dead.lost <= alive.leases()


def once_each(whole, seen, epochs):
    """Whether every server counted each sample of `epochs` once, as the workers saw them."""
    held = list(done_of(whole))
    assert len(held) == 2
    for keys, logged in held:
        assert len(keys) == logged
        for epoch in range(epochs):
            samples = [s for key in keys if key.epoch == epoch for s in seen[key]]
            assert sorted(samples) == ids(SIZES)


def test_a_worker_dies_mid_shard_and_each_sample_counts_once(tmp_path):
    with cluster(tmp_path, workers=2, timeout=1.0) as whole:
        parts = [None, None]

        def dies():
            part = parts[0] = Part(whole)
            batches = iter(part.loader)
            for _ in range(3):
                part.step(next(batches))
            part.push_to_one_server(next(batches))
            part.die(epochs=2)

        def lives():
            part = parts[1] = Part(whole)
            deadline = time.monotonic() + 30
            # Passes, until the silent one counts as dead and its shards have come.
            passes = 0
            while passes < 2 or not has_taken_over(part, parts[0]):
                assert time.monotonic() < deadline, "the dead worker's shards do not come"
                part.train()
                passes += 1
            part.end()

        side_by_side(dies, lives)
        dead, alive = parts
        shared = dead.seen.keys() & alive.seen.keys()
        assert len(dead.seen) == 4
        assert shared, "it had a shard to itself"
        assert all(dead.seen[key] == alive.seen[key] for key in shared)
        once_each(whole, dead.seen | alive.seen, epochs=2)
        assert whole.end() == 0


def test_two_workers_share_the_shards_and_all_leases_are_settled(tmp_path):
    with cluster(tmp_path, workers=2) as whole:
        parts = []

        def work():
            part = Part(whole)
            parts.append(part)
            part.train(epochs=3)
            part.run.finish()
            assert not held(part.run, epochs=3)
            part.run.close()

        side_by_side(work, work)
        first, second = (part.seen for part in parts)
        assert not first.keys() & second.keys()
        once_each(whole, first | second, epochs=3)
        assert whole.end() == 0


def test_empty_shards_alone_make_epochs_that_end(tmp_path):
    with cluster(tmp_path, workers=1) as whole:
        run = whole.join()
        loader = run.loader(numbers, shards=[(0, 0), (1, 0)])
        model = nn.Linear(2, 1)
        run.optimizer(torch.optim.SGD(model.parameters(), lr=1e-3), model)
        assert list(loader) == list(loader) == []
        run.finish()
        assert not held(run, epochs=2)
        run.close()
        assert whole.end() == 0
