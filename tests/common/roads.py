"""Every carrier with a far end to go to, and logs that stall."""

import threading
import time

from hubring_common import rpc
from hubring_common.carrier.grpc import GrpcCarrier, ShardService
from hubring_common.carrier.inproc import InprocCarrier

TOKEN = "a-token"
SEEDED = 2
"""The records that `server.hosts` and a seed make: members, first weights."""


class GrpcRoad:
    """A shard behind a real gRPC server, and carriers to it."""

    def __init__(self, shard, service=ShardService) -> None:
        self.shard, self.found = shard, []
        """The shards that handlers asked for."""
        self.server = rpc.make_server(TOKEN, 16)
        service(lambda number: self.found.append(number) or shard).add_to(self.server)
        self.address = f"127.0.0.1:{rpc.bind(self.server, '127.0.0.1:0')}"
        self.server.start()
        self.carriers = []

    def carrier(self, token=TOKEN):
        self.carriers.append(GrpcCarrier(self.address, token, "server-0"))
        return self.carriers[-1]

    def close(self):
        for carrier in self.carriers:
            carrier.close()
        self.server.stop(0).wait()


class InprocRoad:
    def __init__(self, shard) -> None:
        self.shard = shard

    def carrier(self):
        return InprocCarrier(self.shard)

    def close(self):
        pass


class StalledLog:
    """A sink that keeps what comes after the seed to itself until `flow`."""

    def __init__(self) -> None:
        self._lock, self._flows, self._held = threading.Lock(), False, []

    def store(self, entry, stored):
        with self._lock:
            if entry.record.lsn > SEEDED and not self._flows:
                self._held.append((stored, entry.record.lsn))
            else:
                stored(entry.record.lsn)

    @property
    def is_holding(self):
        return bool(self._held)

    def flow(self):
        with self._lock:
            self._flows = True
            for stored, lsn in self._held:
                stored(lsn)


def eventually(holds, what, seconds=5.0):
    """Wait until `holds()`, but not for ever."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def nothing_lent(shard):
    """Every buffer comes back; over gRPC a little after the caller has its answer."""
    eventually(lambda: _lent(shard) == 0, "a buffer leaked")


def _lent(shard):
    return shard._incoming.out + shard._outgoing.out + shard._still.out
