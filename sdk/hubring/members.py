"""The commands that are one process of a cluster each: from plain values to its exit code."""

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from hubring.options import Member
from hubring.supervision import Supervised
from hubring.tokens import read_token, write_token
from hubring_common import logs
from hubring_common.lifeline import Lifeline
from hubring_common.timing import Timing


def coordinator(
    member: Member,
    *,
    servers: int,
    workers: int,
    mode: str,
    seed: int,
    bind: str,
    ops: str,
    state: Path,
    run: str,
    run_dir: str,
    plaintext: bool,
    make_token: bool,
    forming_timeout: float,
    tensorboard: str,
) -> int:
    from hubring_coordinator.process import CoordinatorSettings, StopRequests, serve

    announce = _begin(member, "coordinator")
    if make_token and member.token_file is not None and not member.token_file.exists():
        write_token(member.token_file)
    settings = CoordinatorSettings(
        token=read_token(member.token_file),
        bind=bind,
        ops=ops,
        servers=servers,
        workers=workers,
        mode=mode,
        seed=seed,
        timing=Timing(member.timeout),
        state_dir=str(state),
        run_dir=run_dir,
        run=run,
        forming_timeout=forming_timeout,
        plaintext=plaintext,
        tensorboard=tensorboard,
    )
    stops = StopRequests()
    _on_signals(lambda: stops.ask("asked to stop"))
    return serve(settings, announce, stops)


def server(
    member: Member,
    *,
    coordinator: str,
    bind: str,
    ops: str,
    state: Path,
    threads: int,
    plaintext: bool,
) -> int:
    announce = _begin(member, "server")
    token = read_token(member.token_file)
    from hubring_server.process import ServerSettings, serve

    settings = ServerSettings(
        coordinator=coordinator,
        token=token,
        state_dir=state,
        bind=bind,
        ops=ops,
        threads=threads,
        plaintext=plaintext,
        timing=Timing(member.timeout),
    )
    stop = threading.Event()
    _on_signals(stop.set)
    return serve(settings, stop, announce)


def _begin(member: Member, role: str) -> Callable[[str], None]:
    """Set up the log; tie the process to its launcher, if it has one. Returns how to announce."""
    logs.configure(role, member.log_level, member.log_style)
    if member.lifeline is None:
        return lambda _where: None
    return Lifeline(member.lifeline).announce


def _on_signals(act: Callable[[], None]) -> None:
    def handler(_number: int, _frame: FrameType | None) -> None:
        act()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def worker(member: Member, script: Sequence[str], *, coordinator: str) -> int:
    """Run `script` as a child until it is done; again where it was cut off and may go on."""
    logs.configure("worker", member.log_level, member.log_style)
    read_token(member.token_file)  # a missing file is told before anything starts
    environment = {
        "HUBRING_COORDINATOR": coordinator,
        "HUBRING_TOKEN_FILE": str(member.token_file),
        "HUBRING_TIMEOUT": str(member.timeout),
        "HUBRING_LOG_STYLE": member.log_style,
    }
    return Supervised(script, environment).run()
