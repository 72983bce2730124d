"""Addresses: HOST:PORT texts, what is loopback, and which of ours routes to another machine."""

import socket
from ipaddress import ip_address

from hubring_common.errors import Unreachable, UsageError

ANY_HOST = {"", "0.0.0.0", "::"}  # noqa: S104 - recognised, not bound


def split(address: str) -> tuple[str, int]:
    """(host, port). Raises UsageError where `address` is not HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f"{address!r} is not HOST:PORT", todo="for example 127.0.0.1:7077")
    return host.strip("[]"), int(port)


def joined(host: str, port: int) -> str:
    """HOST:PORT, as `split` takes it; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    host, _ = split(address)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_private(address: str, *, plaintext: bool) -> None:
    """Without TLS, traffic leaves this machine only where it was asked for by name."""
    if not plaintext and not is_loopback(address):
        raise UsageError(
            f"{address} can be reached from other machines, and traffic there is not encrypted yet",
            todo="bind to 127.0.0.1, or say --plaintext on a network that you trust",
        )


def advertised(bind: str, port: int, coordinator: str) -> str:
    """The address that others should dial: this machine's one that routes to the coordinator.

    Raises Unreachable where the coordinator's name has no address, or no road leads there.
    """
    host, _ = split(bind)
    return joined(_source_towards(coordinator) if host in ANY_HOST else host, port)


def _source_towards(address: str) -> str:
    host, port = split(address)
    try:
        family, kind, *_, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:  # connect on UDP sends nothing
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        fact = f"no way to {address} from here: {error.strerror}"
        raise Unreachable(fact, todo="look at the name and the network") from None
