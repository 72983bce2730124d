"""The network as seen from here: ports that hubring takes by itself, and this machine's address."""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

from hubring.doctor.finding import Finding, Grade
from hubring_common import net
from hubring_common.errors import HubringError, TimedOut, Unreachable

T = TypeVar("T")
SUBJECT = "network"
PORTS = {7077: "a coordinator's own", 7078: "its ops port in Compose"}
ELSEWHERE = "192.0.2.1:9"
"""An address that is nobody's (RFC 5737): the road to it is the default one. Nothing is sent."""
LISTENS = "0A"
"""A listening socket's state in /proc/net/tcp."""


def check(coordinator: str) -> Iterator[Finding]:
    """`coordinator`: HOST:PORT, or "" where none is named."""
    for port, use in PORTS.items():
        yield _port(port, use)
    yield _address(coordinator)


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """`call`'s result: for calls that have no deadline of their own, such as looking up a name.

    Raises TimedOut, or the HubringError of `call`.
    """
    answer: SimpleQueue[T | HubringError] = SimpleQueue()

    def run() -> None:
        try:
            answer.put(call())
        except HubringError as error:
            answer.put(error)

    Thread(target=run, name=what, daemon=True).start()
    try:
        result = answer.get(timeout=seconds)
    except Empty:
        raise TimedOut(f"{what} took more than {seconds:g} s") from None
    if isinstance(result, HubringError):
        raise result
    return result


def _port(port: int, use: str) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            taken = f"taken by {listener(port) or 'another user'} ({error.strerror})"
        else:
            return Finding(SUBJECT, f"port {port}", f"free ({use})")
    todo = "fine if that is yours; another coordinator takes --bind 127.0.0.1:0"
    return Finding(SUBJECT, f"port {port}", f"{taken} ({use})", Grade.NOTE, todo)


def _address(coordinator: str) -> Finding:
    """What a server here would have others dial."""
    try:
        road = within(2.0, "the way there", lambda: _source(coordinator or ELSEWHERE))
    except HubringError as error:
        if not coordinator:
            return Finding(SUBJECT, "address", "loopback alone: no network leads elsewhere")
        todo = error.todo or "look at the name and the network"
        return Finding(SUBJECT, "address", error.fact, Grade.PROBLEM, todo, Unreachable)
    towards = f"towards {coordinator}" if coordinator else "by the default route"
    kind = _kind(road)
    fact = f"{road} ({kind}) {towards}; a server with --bind 0.0.0.0:0 tells others this one"
    if kind != "public":
        return Finding(SUBJECT, "address", fact)
    todo = "traffic is not encrypted yet: use a private network or a tunnel"
    return Finding(SUBJECT, "address", fact, Grade.NOTE, todo)


def _source(coordinator: str) -> str:
    return net.split(net.advertised("0.0.0.0:0", 0, coordinator))[0]


def _kind(host: str) -> str:
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return "loopback: this machine alone"
    return "private" if address.is_private else "public"


# --- who listens ---------------------------------------------------------------------------


def listener(port: int) -> str:
    """The process that listens on `port`, as far as this user may know; "" where it may not."""
    wanted = {f"socket:[{inode}]" for inode in _inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in wanted for fd in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                return f"pid {process.name}: {words[:60]}"
        except OSError:  # gone, or another user's
            continue
    return ""


def _inodes(port: int) -> Iterator[str]:
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]
