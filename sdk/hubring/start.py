"""`hubring.init()`: joins the cluster that the environment names, or starts one of its own."""

import atexit
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from hubring.embedded import EmbeddedCluster
from hubring.plan import LocalPlan
from hubring.tokens import read_token
from hubring_common import logs
from hubring_common.errors import HubringError, UsageError
from hubring_common.timing import Timing
from hubring_worker.run import Run

log = logging.getLogger(__name__)


is_worker = False
"""This process was started to run a training script, whoever started it."""


class _Current:
    """What this process takes part in. One run a process."""

    run: Run | None = None
    cluster: EmbeddedCluster | None = None
    failure: tuple[BaseException, str] | None = None
    has_tried = False


def init(
    *,
    servers: int = 1,
    mode: str = "async",
    seed: int = 0,
    timeout: float = 10.0,
    runs: str = "runs",
) -> Run:
    """Take part in a run; the same one again where this process did so before.

    With HUBRING_COORDINATOR (HOST:PORT) and HUBRING_TOKEN_FILE set, as `hubring run` and
    `hubring worker` set them, it joins that cluster, and the arguments are the cluster's to say.
    Otherwise it starts a cluster of its own for this script: a coordinator and `servers` servers,
    each a process on this machine, which end with it. Results lie below the folder `runs`.

    Raises UsageError in a process that this script started (a DataLoader worker by `spawn`),
    Unreachable, TimedOut, Unauthorized or VersionMismatch where the cluster cannot be joined.
    """
    if _Current.run is not None:
        return _Current.run
    if multiprocessing.parent_process() is not None and not is_worker:
        todo = 'put the script\'s own lines below `if __name__ == "__main__":`'
        raise UsageError("hubring.init() was called in a worker process of this script", todo=todo)
    address = os.environ.get("HUBRING_COORDINATOR")
    _Current.has_tried = True
    if not logging.getLogger("hubring_worker").handlers:
        logs.configure("worker", "warning")
    sys.excepthook = _remember(sys.excepthook)
    atexit.register(_at_exit)
    if address:
        _Current.run = _join(address, timeout)
        _leave_on_sigterm(_Current.run)
    else:
        plan = LocalPlan(1, servers, mode, seed, timeout, Path(runs))
        _Current.cluster = EmbeddedCluster(plan)
        _Current.run = Run(*_Current.cluster.start())
    return _Current.run


def _leave_on_sigterm(run: Run) -> None:
    """A worker that is scaled away finishes its batch and gives the others back; a second
    SIGTERM ends it at once. A handler of the script's own stays.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run.drain("SIGTERM")

    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, leave)


def _join(address: str, timeout: float = 10.0) -> Run:
    token = read_token(_path("HUBRING_TOKEN_FILE"))
    return Run(address, token, Timing(float(os.environ.get("HUBRING_TIMEOUT", timeout))))


def end(error: BaseException | None = None, traceback: str = "") -> None:
    """Close this process's run, if it has one: after a good end, or by `error`.

    A script that failed before it came to `init` joins to say so: else the cluster would wait
    for it in vain.
    """
    run, _Current.run = _Current.run, None
    address = os.environ.get("HUBRING_COORDINATOR")
    if run is None and error is not None and address and not _Current.has_tried:
        run = _join(address)
    if run is not None:
        run.close(error, traceback)


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _remember(usual: Callable[..., Any]) -> Callable[..., Any]:
    """An excepthook that also keeps what ended the script."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        _Current.failure = (error, text)
        usual(kind, error, trace)

    return hook


def _at_exit() -> None:
    """A script that nobody supervises has ended: leave its run, then end its cluster."""
    code = 0
    try:
        end(*(_Current.failure or ()))
    except HubringError as error:
        sys.stderr.write(f"{error}\n")
        code = error.exit_code
    if _Current.cluster is not None:
        _Current.cluster.close()
    if code:  # too late to raise: the interpreter is past the point where an error sets the code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
