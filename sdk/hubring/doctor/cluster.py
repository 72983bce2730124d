"""A named coordinator: whether it can be used from here, with this token, by this version."""

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hubring.doctor.finding import Finding, Grade
from hubring.doctor.network import within
from hubring.tokens import read_token
from hubring_common import net, rpc, wire
from hubring_common.attend import ATTEND
from hubring_common.errors import (
    HubringError,
    Unauthorized,
    Unreachable,
    UsageError,
    VersionMismatch,
)
from hubring_common.messages import (
    MAJOR,
    MINOR,
    FromMember,
    Hello,
    MemberState,
    Role,
    Status,
    StatusRequest,
)

SUBJECT = "cluster"
DEADLINE = 2.0
"""Seconds of each call."""
ROUND_TRIPS = 20
NO_RUN = "doctor-asks-for-the-version-alone"
"""No run is called so: a hello for it is refused before it makes a member, after its version was
judged."""
SLOW = 0.1
"""Seconds of a round trip, above which a step waits more than it computes."""


def token(file: Path | None) -> Iterator[Finding]:
    if file is None:
        fact = "no file given; a coordinator makes one with --make-token"
        yield Finding(SUBJECT, "token", fact)
        return
    try:
        read_token(file)
    except HubringError as error:
        todo = error.todo or "copy the coordinator's token file"
        yield Finding(SUBJECT, "token", error.fact, Grade.PROBLEM, todo, Unauthorized)
        return
    mode = file.stat().st_mode & 0o777
    grade = (Grade.NOTE, f"others on this machine can read it: chmod 600 {file}")
    yield Finding(SUBJECT, "token", f"{file}, mode {mode:03o}", *(grade if mode & 0o077 else ()))


def coordinator(address: str, file: Path | None) -> Iterator[Finding]:
    """Ends where a step fails that the next ones need."""
    try:
        milliseconds = 1000 * within(
            DEADLINE, f"connecting to {address}", lambda: _connect(address)
        )
    except HubringError as error:
        yield _problem("connect", error)
        return
    yield Finding(SUBJECT, "connect", f"{address} answered in {milliseconds:.1f} ms")
    if file is None:
        todo = "give --token-file; every member of the run has the same"
        yield Finding(SUBJECT, "run", "not asked: no token", Grade.PROBLEM, todo, Unauthorized)
        return
    try:
        secret = read_token(file)
    except UsageError:  # said by `token`
        return
    channel = rpc.open_channel(address)
    try:
        yield from _by_calls(rpc.Caller(channel, "Coordinator", secret, f"coordinator {address}"))
        yield _version(channel.stream_stream(ATTEND), secret)
    except HubringError as error:
        yield _problem("run", error)
    finally:
        channel.close()


def clock() -> Finding:
    """For information: nothing that hubring decides needs clocks to agree."""
    fact = "not compared, nor needed: leases count seconds on the coordinator's monotonic clock"
    return Finding(SUBJECT, "clock", fact)


def _connect(address: str) -> float:
    """Seconds that a connection takes."""
    host, port = net.split(address)
    began = time.monotonic()
    try:
        socket.create_connection((host, port), timeout=DEADLINE).close()
    except OSError as error:
        fact = f"nobody answers at {address}: {error.strerror or error}"
        todo = "is the coordinator running, does it --bind to an address that leads here?"
        raise Unreachable(fact, todo=todo) from None
    return time.monotonic() - began


def _by_calls(caller: rpc.Caller) -> Iterator[Finding]:
    times: list[float] = []
    for _ in range(1 + ROUND_TRIPS):
        began = time.monotonic()
        status: Status = caller.call("GetStatus", StatusRequest(), DEADLINE)
        times.append(time.monotonic() - began)
        if sum(times) > DEADLINE:
            break
    live = [m for m in status.members if m.state is not MemberState.DEAD]
    words = status.why or status.waiting_for
    fact = f"{status.run} is {status.state.name.lower()}, {len(live)} members"
    yield Finding(SUBJECT, "run", f"{fact}; {words}" if words else fact)
    usual = statistics.median(times[1:] or times)
    fact = f"{1000 * usual:.2f} ms, median of {max(1, len(times) - 1)} calls"
    todo = "put workers near the coordinator and the servers, or take larger batches"
    yield Finding(SUBJECT, "round trip", fact, *((Grade.NOTE, todo) if usual > SLOW else ()))


def _version(attend: Callable[..., Iterator[bytes]], secret: str) -> Finding:
    """The wire's version decides; a hello for no run asks for it without joining."""
    hello = FromMember(hello=Hello(Role.WORKER, run=NO_RUN))
    try:
        with rpc.calling("the coordinator"):
            messages, key = iter([wire.encode(hello)]), rpc.metadata(secret)
            next(attend(messages, metadata=key, timeout=DEADLINE))
    except UsageError:  # the run's name: the version was judged before
        return Finding(SUBJECT, "version", f"it speaks version {MAJOR}, as here ({MAJOR}.{MINOR})")
    raise VersionMismatch("the coordinator answers as no hubring of this version does")


def _problem(about: str, error: HubringError) -> Finding:
    todo = error.todo or "look at the coordinator's log"
    kind = next((k for k in (Unauthorized, VersionMismatch) if isinstance(error, k)), Unreachable)
    return Finding(SUBJECT, about, error.fact, Grade.PROBLEM, todo, kind)
