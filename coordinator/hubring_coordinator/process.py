"""A coordinator as a process: from its settings to its exit code."""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

import grpc
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health,
    health_pb2,
    health_pb2_grpc,
)

from hubring_common import net, report, rpc
from hubring_common.clock import MonotonicClock
from hubring_common.errors import KINDS, HubringError, RunEnded, UsageError
from hubring_common.messages import RunState, Status, StatusRequest, Stop
from hubring_common.ops import OpsServer
from hubring_common.timing import Timing
from hubring_coordinator import metrics, summary
from hubring_coordinator.machine.coordinator import Coordinator
from hubring_coordinator.machine.events import Put
from hubring_coordinator.machine.state import Config
from hubring_coordinator.page.live import Live
from hubring_coordinator.scalars import Scalars
from hubring_coordinator.service import THREADS, Service
from hubring_coordinator.shell import Shell
from hubring_coordinator.store import MemoryStore, SqliteStore, Store

log = logging.getLogger(__name__)

MODES = ("async",)
PROGRESS_EVERY = 5.0
"""Seconds between progress lines in the log."""
KEPT_ACROSS_RUNS = {"counter", "past_runs"}
"""Kinds of rows that the next run goes on with: sessions are never reused in a store."""


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """What a coordinator is told. `{run}` in `run_dir` stands for the run's id.

    An empty `state_dir` keeps nothing: the run ends with the coordinator. An empty `run_dir`
    writes no summary. An empty `run` goes on with the store's unfinished run, or makes a new id.
    `tensorboard`: a folder for event files, which takes the package of that name; "": none.
    `forming_timeout` in seconds without progress.
    """

    token: str = field(repr=False)
    bind: str = "127.0.0.1:0"
    ops: str = "127.0.0.1:0"
    servers: int = 1
    workers: int = 1
    mode: str = "async"
    seed: int = 0
    timing: Timing = field(default_factory=Timing)
    state_dir: str = ""
    run_dir: str = ""
    run: str = ""
    forming_timeout: float = 120.0
    plaintext: bool = False
    tensorboard: str = ""

    def __post_init__(self) -> None:
        net.require_private(self.bind, plaintext=self.plaintext)
        _require(self.token != "", "the run's token is empty", "give --token-file")
        servers = f"servers is {self.servers}; a run has at least one"
        _require(self.servers >= 1, servers, "give --servers a number from 1 on")
        mode = f"mode is {self.mode!r}; this version has {', '.join(MODES)}"
        _require(self.mode in MODES, mode, "give --mode one of these")
        _require(self.forming_timeout > 0, "the forming timeout is not positive", "raise it")


class StopRequests:
    """Asks from a signal handler or another thread: the first drains the run, the second ends
    it at once.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[str | None] = SimpleQueue()

    def ask(self, why: str) -> None:
        """Safe in a signal handler: SimpleQueue.put is reentrant."""
        self._asked.put(why)

    def wake(self) -> None:
        """Make `next` return now."""
        self._asked.put(None)

    def next(self, timeout: float) -> str | None:
        try:
            return self._asked.get(timeout=timeout)
        except Empty:
            return None


def serve(
    settings: CoordinatorSettings,
    started: Callable[[str], None],
    stops: StopRequests | None = None,
) -> int:
    """Coordinate one run until its members are gone. Returns the exit code.

    `started` gets two HOST:PORT, to dial and of the ops port, once calls are answered. Raises
    UsageError where the settings, the address or the state folder cannot be used, and Busy where
    the store fails.
    """
    store = SqliteStore(Path(settings.state_dir)) if settings.state_dir else MemoryStore()
    try:
        config = _begin(settings, store)
        return _Process(settings, config, store, stops or StopRequests()).run(started)
    finally:
        store.close()


class _Process:
    def __init__(
        self, settings: CoordinatorSettings, config: Config, store: Store, stops: StopRequests
    ) -> None:
        self._settings, self._config, self._stops = settings, config, stops
        self._last: Status | None = None
        self._has_exited = False
        clock = MonotonicClock()
        self._shell = Shell(
            Coordinator(config, store.load(), clock.now()),
            store,
            clock,
            settings.timing,
            on_over=self._over,
            on_exit=self._exit,
        )
        self._health = health.HealthServicer()
        self._server = self._make_server()
        self._scalars = Scalars(Path(settings.tensorboard)) if settings.tensorboard else None
        self._live = self._make_live()
        figures = metrics.registry(self._live.latest)
        self._ops = OpsServer(settings.ops, self._readiness, self._live.pages(), figures)

    def run(self, started: Callable[[str], None]) -> int:
        port = self._bind()
        self._shell.start()
        self._live.start()
        self._server.start()
        try:
            self._health.set("", health_pb2.HealthCheckResponse.SERVING)
            where = self._where(self._settings.bind, port)
            ops = self._where(self._settings.ops, self._ops.port)
            log.info("run %s waits on %s; page http://%s/", self._config.run, where, ops)
            started(f"{where} {ops}")
            self._wait()
            self._finish()
        finally:
            self._live.close()
            self._ops.close()
            if self._scalars is not None:
                self._scalars.close()
            self._health.enter_graceful_shutdown()
            self._server.stop(grace=self._settings.timing.heartbeat).wait()
            self._shell.close()
        return self._exit_code()

    def _bind(self) -> int:
        try:
            return rpc.bind(self._server, self._settings.bind)
        except HubringError:
            self._ops.close()
            raise

    def _make_server(self) -> grpc.Server:
        server = rpc.make_server(self._settings.token, THREADS)
        Service(self._shell).add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    def _make_live(self) -> Live:
        settings, scalars = self._settings, self._scalars
        looked = scalars.write if scalars is not None else lambda _status: None
        return Live(self._status, settings.timing, self._config.run, settings.state_dir, looked)

    def _where(self, bind: str, port: int) -> str:
        return net.joined(net.split(bind)[0], port)

    def _readiness(self) -> tuple[bool, str]:
        """For /readyz: members can join."""
        return (self._last is None, "the run is over" if self._last else "")

    def _status(self) -> Status:
        status: Status = self._shell.call(StatusRequest())
        return status

    def _wait(self) -> None:
        asked = 0
        while not self._has_exited:
            why = self._stops.next(PROGRESS_EVERY)
            if why is not None:
                self._shell.tell(Stop(why, at_once=asked > 0))
                asked += 1
            elif self._last is None and not self._has_exited:
                self._tell_progress()

    def _tell_progress(self) -> None:
        try:
            log.info("%s", report.progress_line(self._status()))
        except HubringError as error:  # a machine that is overloaded goes on without the line
            log.warning("%s", error)

    def _over(self, status: Status) -> None:
        """The summary is written now, and again when the members have said their last word."""
        self._last = status
        self._write(status)

    def _write(self, status: Status) -> None:
        if self._config.run_dir:
            summary.write(status, self._config.run_dir)

    def _finish(self) -> None:
        """The page's last word and the report: not on the machine's thread, since it is large."""
        if self._last is not None:
            page = self._live.finish(self._last)
            if self._config.run_dir:
                summary.place(self._config.run_dir, summary.REPORT, page)

    def _exit(self, status: Status | None) -> None:
        if status is not None:
            log.info("%s", report.outcome(status, self._config.run_dir))
            log.info("%s", report.figures(status, status.seconds))
            if status.ledger:
                log.info("ledger  %s", status.ledger)
            self._last = status
            self._write(status)
        self._has_exited = True
        self._stops.wake()

    def _exit_code(self) -> int:
        if self._shell.failure is not None:
            raise self._shell.failure
        if self._last is None or self._last.state is not RunState.FAILED:
            return 0
        return KINDS.get(self._last.kind, RunEnded).exit_code


# --- which run -----------------------------------------------------------------------------


def _begin(settings: CoordinatorSettings, store: Store) -> Config:
    """The run to serve: the store's unfinished one, or a new one after archiving a finished."""
    rows = store.load()
    found = next((row.value for row in rows if row.kind == "run"), None)
    if found is not None and not RunState[found["state"]].is_over:
        _require_same(settings, found)
        return _config(settings, found["id"])
    if found is not None:
        store.commit(_archive(rows, found))
    past = {row.key for row in store.load() if row.kind == "past_runs"}
    run = settings.run or _new_run()
    _require(run not in past, f"run {run} is over", "give --run-id another name, or none")
    return _config(settings, run)


def _archive(rows: Sequence[Put], run: dict[str, object]) -> list[Put]:
    """The finished run becomes one row; its own rows go."""
    kept = {name: run[name] for name in ("state", "why", "who", "kind", "model", "metrics")}
    dropped = [Put(row.kind, row.key, None) for row in rows if row.kind not in KEPT_ACROSS_RUNS]
    return [Put("past_runs", str(run["id"]), kept), *dropped]


def _require_same(settings: CoordinatorSettings, run: dict[str, object]) -> None:
    todo = "give the same settings, or --state another folder"
    wanted = {"id": settings.run or run["id"], "servers": settings.servers}
    for name, value in {**wanted, "mode": settings.mode, "seed": settings.seed}.items():
        fact = f"{name} is {value} here but {run[name]} in the unfinished run {run['id']}"
        _require(value == run[name], fact, todo)


def _config(settings: CoordinatorSettings, run: str) -> Config:
    return Config(
        run,
        settings.servers,
        settings.mode,
        settings.seed,
        settings.timing,
        settings.forming_timeout,
        settings.run_dir.replace("{run}", run),
        settings.workers,
    )


def _new_run() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _require(holds: bool, fact: str, todo: str) -> None:
    if not holds:
        raise UsageError(fact, todo=todo)
