"""A server beside a real coordinator: what it is told, when it ends, and with what code."""

import threading
import time
import urllib.error
import urllib.request
from queue import SimpleQueue

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from whole import TOKEN, cluster

from hubring_common.carrier.grpc import GrpcCarrier
from hubring_common.errors import NotYet, RunEnded, Unauthorized, Unreachable
from hubring_common.messages import PullHeader
from hubring_common.timing import Timing
from hubring_server.process import ServerSettings, serve
from hubring_server.slots import Slot

DATA = TensorDataset(torch.ones(8, 2), torch.ones(8, 1))
SOON = Timing(0.4)


class Serving:
    """`hubring server` in a thread."""

    def __init__(self, address, folder, token=TOKEN, timing=SOON):
        self.stop, self._ended = threading.Event(), SimpleQueue()
        started = SimpleQueue()
        settings = ServerSettings(address, token, folder, timing=timing)
        thread = threading.Thread(
            target=lambda: self._ended.put(serve(settings, self.stop, started.put)), daemon=True
        )
        thread.start()
        self.name = started.get(timeout=10)

    def code(self):
        return self._ended.get(timeout=10)


def readiness(server):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server._ops.port}/readyz") as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def train(run, epochs=1):
    """A generator: an epoch each time."""
    model = nn.Linear(2, 1)
    loader = run.loader(DATA, batch_size=2)
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for _ in range(epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        yield


def test_a_server_is_ready_once_it_holds_its_shard_and_knows_no_other(tmp_path):
    with cluster(tmp_path, servers=1) as whole:
        (server,) = whole.servers
        assert readiness(server) == 503
        next(train(whole.join()))
        assert readiness(server) == 200
        carrier = GrpcCarrier(f"127.0.0.1:{server._port}", TOKEN, "server-0")
        with pytest.raises(NotYet, match=r"shard 7 is not here \(here are \[0\]\)"):
            carrier.pull(PullHeader("a-run", 7, 1), [], 5)
        carrier.close()
        (beat,) = server._beat().shards
        assert (beat.shard, beat.applied, beat.refused) == (0, beat.version, 0)
        server._shards[0].check()


def test_a_server_whose_shard_breaks_ends(tmp_path):
    class Gone:
        def store(self, entry, stored):
            raise OSError("the disk is gone")

    with cluster(tmp_path, servers=1) as whole:
        (server,) = whole.servers
        epochs = train(whole.join(), 2)
        next(epochs)
        server._shards[0]._log = Gone()
        with pytest.raises(RunEnded):
            next(epochs)
        assert server.wait(5)
        assert str(server._end) == "the disk is gone"


def test_a_server_ends_with_its_run(tmp_path):
    with cluster(tmp_path, servers=1) as whole:
        spare = Serving(whole.address, tmp_path / "servers")
        assert spare.name == "server-1"
        whole.stops.ask("the test is over")
        whole.stops.ask("the test is over")
        assert spare.code() == 0


def test_a_server_that_is_told_to_leave_waits_no_longer_than_a_timeout(tmp_path):
    with cluster(tmp_path, servers=1) as whole:
        spare = Serving(whole.address, tmp_path / "servers")
        spare.stop.set()
        started = time.monotonic()
        assert spare.code() == 0
        assert time.monotonic() - started < 5
        again = Serving(whole.address, tmp_path / "servers")
        assert again.name == "server-1", "its slot is free again"
        again.stop.set()
        assert again.code() == 0


def test_a_server_without_a_coordinator_gives_up_and_frees_its_slot(tmp_path):
    settings = ServerSettings("127.0.0.1:1", TOKEN, tmp_path, timing=SOON)
    with pytest.raises(Unreachable):
        serve(settings, threading.Event(), lambda name: None)
    slot = Slot(tmp_path)
    assert slot.number == 0
    slot.release()


def test_a_server_with_another_token_is_turned_away(tmp_path):
    with cluster(tmp_path, servers=1) as whole, pytest.raises(Unauthorized):
        settings = ServerSettings(whole.address, "another", tmp_path / "other", timing=SOON)
        serve(settings, threading.Event(), lambda name: None)
