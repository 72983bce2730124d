"""A server as a process: it attends, holds the shards it is given, and serves them."""

import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hubring_common import net, rpc
from hubring_common.attend import Attendance
from hubring_common.carrier.grpc import ShardService
from hubring_common.errors import HubringError, NotYet
from hubring_common.layout import plan
from hubring_common.messages import End, Heartbeat, Hello, Install, Members, Role, ToMember
from hubring_common.ops import OpsServer
from hubring_common.timing import Timing
from hubring_server.host import ShardHost
from hubring_server.log import MemoryLog
from hubring_server.machine.mode import MODES
from hubring_server.slots import Slot
from hubring_server.weights import ShardWeights

log = logging.getLogger(__name__)

CALLS = 128
"""Calls under way at once; a worker has one a shard."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    coordinator: str
    token: str = field(repr=False)
    state_dir: Path
    bind: str = "127.0.0.1:0"
    ops: str = "127.0.0.1:0"
    threads: int = 1
    plaintext: bool = False
    timing: Timing = field(default_factory=Timing)


class Server:
    """Runs from `start` until `wait` returns. `shards` are those it was told to hold."""

    def __init__(self, settings: ServerSettings) -> None:
        net.require_private(settings.bind, plaintext=settings.plaintext)
        self._settings = settings
        self._shards: dict[int, ShardHost] = {}
        self._over = threading.Event()
        self._end: End | BaseException | None = None
        self._slot = Slot(settings.state_dir)
        self._grpc = rpc.make_server(settings.token, CALLS)
        ShardService(self._find).add_to(self._grpc)
        self._port = rpc.bind(self._grpc, settings.bind)
        self._ops = OpsServer(settings.ops, self._readiness)
        self._channel = rpc.open_channel(settings.coordinator)
        self._attendance = Attendance(
            self._channel,
            settings.token,
            settings.timing,
            beat=self._beat,
            orders=self._order,
            lost=self._finish,
        )

    def start(self) -> str:
        """Serve, and join the cluster. Returns this server's name."""
        settings = self._settings
        torch.set_num_threads(settings.threads)
        self._grpc.start()
        address = net.advertised(settings.bind, self._port, settings.coordinator)
        endpoints = (f"grpc:{address}",)
        hello = Hello(
            Role.SERVER,
            host=socket.gethostname(),
            pid=os.getpid(),
            slot=self._slot.number,
            endpoints=endpoints,
            torch=torch.__version__,
        )
        welcome = self._attendance.start(hello)
        log.info("%s serves run %s on %s", welcome.name, welcome.run, address)
        return welcome.name

    def wait(self, timeout: float | None = None) -> bool:
        """Whether the run ended, or this server failed, within `timeout` seconds."""
        return self._over.wait(timeout)

    def close(self) -> int:
        """Stop serving. Returns the exit code: 0 after a run's end, whatever it was."""
        self._attendance.close()
        self._grpc.stop(grace=0).wait()
        for host in self._shards.values():
            host.close()
        self._channel.close()
        self._ops.close()
        self._slot.release()
        if isinstance(self._end, HubringError):
            log.error("%s", self._end)
            return self._end.exit_code
        return 1 if isinstance(self._end, BaseException) else 0

    # --- what the coordinator orders ---

    def _order(self, message: ToMember) -> None:
        if message.install is not None:
            self._install(message.install)
        elif message.members is not None:
            self._set_members(message.members)
        elif message.end is not None:
            self._finish(message.end)

    def _install(self, order: Install) -> None:
        """Idempotent: after a re-attach the coordinator says again what was not acknowledged."""
        if order.shard not in self._shards:
            layout = plan(order.spec, order.shards)
            weights = ShardWeights(layout, order.shard)
            welcome = self._attendance.welcome
            self._shards[order.shard] = ShardHost(
                welcome.run, weights, MODES[welcome.mode], MemoryLog(), self._finish
            )
            log.info("holds shard %d of %d: %d bytes", order.shard, order.shards, weights.nbytes)
        self._attendance.ack(order.order)

    def _set_members(self, order: Members) -> None:
        for host in self._shards.values():
            host.set_members(order.view, order.sessions, self._settings.timing.call())
        self._attendance.ack(order.order)

    # --- for carriers, probes and the coordinator ---

    def _find(self, shard: int) -> ShardHost:
        if (host := self._shards.get(shard)) is not None:
            return host
        fact = f"shard {shard} is not here (here are {sorted(self._shards)})"
        raise NotYet(fact, todo="it is sent again by itself")

    def _beat(self) -> Heartbeat:
        return Heartbeat(shards=tuple(host.progress() for host in tuple(self._shards.values())))

    def _readiness(self) -> tuple[bool, str]:
        return (True, "") if self._shards else (False, "no shard yet")

    def _finish(self, end: End | BaseException) -> None:
        if self._end is None:
            self._end = end
            self._over.set()


def serve(settings: ServerSettings, stop: threading.Event, started: Callable[[str], None]) -> int:
    """Serve until the run is over. `stop`: leave once workers are done, or a timeout later."""
    server = Server(settings)
    try:
        started(server.start())
        while not server.wait(0.2):
            if stop.is_set():
                server.wait(settings.timing.timeout)
                break
    finally:
        code = server.close()
    return code
