"""A whole cluster within the test's process: real coordinator, real servers, real gRPC.

Only the process borders are missing; tests/cluster has those.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from hubring_common.errors import RunEnded
from hubring_common.timing import Timing
from hubring_coordinator.process import CoordinatorSettings, StopRequests
from hubring_coordinator.process import serve as serve_coordinator
from hubring_server.process import Server, ServerSettings
from hubring_worker.run import Run

TOKEN = "a-token"


@dataclass
class Whole:
    """A running cluster. `join` adds a worker of this process."""

    address: str
    folder: Path
    timing: Timing
    servers: list[Server]
    coordinator: threading.Thread
    stops: StopRequests
    code: SimpleQueue = field(default_factory=SimpleQueue)
    runs: list[Run] = field(default_factory=list)

    def join(self) -> Run:
        run = Run(self.address, TOKEN, self.timing)
        self.runs.append(run)
        return run

    def end(self, timeout: float = 10) -> int:
        """The coordinator's exit code, once the run is over."""
        return self.code.get(timeout=timeout)


def keep(server: Server) -> None:
    """What `hubring server` does: start, wait for the end of the run, close."""
    server.start()
    server.wait()
    server.close()


@contextmanager
def cluster(folder: Path, servers: int = 2, timeout: float = 5.0, **settings) -> Iterator[Whole]:
    timing = Timing(timeout)
    where, code, stops = SimpleQueue(), SimpleQueue(), StopRequests()
    chosen = CoordinatorSettings(
        token=TOKEN, servers=servers, timing=timing, run_dir=str(folder / "run"), **settings
    )
    thread = threading.Thread(
        target=lambda: code.put(serve_coordinator(chosen, where.put, stops)), daemon=True
    )
    thread.start()
    address = where.get(timeout=10).split()[0]
    running = [
        Server(ServerSettings(address, TOKEN, folder / "servers", timing=timing))
        for _ in range(servers)
    ]
    keepers = [threading.Thread(target=keep, args=(server,), daemon=True) for server in running]
    for keeper in keepers:
        keeper.start()
    whole = Whole(address, folder, timing, running, thread, stops, code)
    try:
        yield whole
    finally:
        for run in whole.runs:
            run.close(RunEnded("the test is over"))
        stops.ask("the test is over")
        stops.ask("the test is over")
        for each in (*keepers, thread):
            each.join(10)
            assert not each.is_alive(), "a part of the cluster did not end"
