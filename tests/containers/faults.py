"""Faults that the host injects into containers, so that these keep no rights. Needs root.

Network faults live in one container's network namespace. `mend` takes back all that still lasts.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

NETDELAY = Path(__file__).parent / "netdelay.py"
PATIENCE = 30.0
HELD = "7"
"""The netfilter queue of held packets."""


def told(*command: str) -> str:
    """What the command prints. Its error is the test's."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


def inspect(container: str, template: str) -> str:
    return told("docker", "inspect", "-f", template, container)


class Faults:
    """Each names a container by name or id and returns itself: `faults.cut(w).kill(other)`."""

    def __init__(self) -> None:
        self._undo: dict[tuple[str, str], Callable[[], object]] = {}

    # --- processes ---

    def kill(self, container: str) -> Self:
        """SIGKILL to its first process, from outside: nothing in it can answer."""
        os.kill(int(inspect(container, "{{.State.Pid}}")), signal.SIGKILL)
        return self

    def docker_kill(self, container: str) -> Self:
        told("docker", "kill", container)
        return self

    def pause(self, container: str) -> Self:
        told("docker", "pause", container)
        return self._lasts("pause", container, lambda: told("docker", "unpause", container))

    def unpause(self, container: str) -> Self:
        return self._end("pause", container)

    # --- networks ---

    def cut(self, container: str, *, address_is_taken: bool = False) -> Self:
        """Its network is gone and nobody hears a reset; its address may be another's then."""
        networks = inspect(container, "{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}")
        service = inspect(container, '{{index .Config.Labels "com.docker.compose.service"}}')
        name = inspect(container, "{{.Name}}").lstrip("/")
        (network,) = networks.split()
        told("docker", "network", "disconnect", network, container)
        taker = taker_of_address(network, inspect(container, "{{.Image}}"), address_is_taken)
        connect = ("docker", "network", "connect", "--alias", service, "--alias", name)

        def undo():
            told(*connect, network, container)
            for other in taker:
                told("docker", "rm", "-f", other)

        return self._lasts("cut", container, undo)

    def join(self, container: str) -> Self:
        return self._end("cut", container)

    def drop(self, container: str, *, sent_to: str) -> Self:
        """One way: what it sends to that container is lost; what comes from there arrives."""
        rule = ("OUTPUT", "-d", address(sent_to), "-j", "DROP")
        self._inside(container, "iptables", "-A", *rule)
        return self._lasts(
            "drop", container, lambda: self._inside(container, "iptables", "-D", *rule)
        )

    def undrop(self, container: str) -> Self:
        return self._end("drop", container)

    def delay(self, container: str, seconds: float) -> Self:
        """All TCP that reaches it comes so much later."""
        held = subprocess.Popen(
            [*entering(container), sys.executable, str(NETDELAY), HELD, str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert held.stdout.readline() == "ready\n"
        rule = ("INPUT", "-p", "tcp", "-j", "NFQUEUE", "--queue-num", HELD)
        self._inside(container, "iptables", "-A", *rule)

        def undo():
            self._inside(container, "iptables", "-D", *rule)
            held.terminate()  # the packets that it still holds are lost, and sent again
            held.wait(PATIENCE)
            held.stdout.close()

        return self._lasts("delay", container, undo)

    def undelay(self, container: str) -> Self:
        return self._end("delay", container)

    def narrow(self, container: str, rate: str) -> Self:
        """What it sends, at `rate` such as 10mbit."""
        route = self._inside(container, "ip", "-o", "-4", "route", "show", "default").split()
        device = route[route.index("dev") + 1]
        qdisc = ("root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms")
        self._inside(container, "tc", "qdisc", "add", "dev", device, *qdisc)
        tc = ("tc", "qdisc", "del", "dev", device, "root")
        return self._lasts("narrow", container, lambda: self._inside(container, *tc))

    def widen(self, container: str) -> Self:
        return self._end("narrow", container)

    def mend(self) -> None:
        for kind, container in reversed(tuple(self._undo)):
            self._end(kind, container)

    @staticmethod
    def _inside(container: str, *command: str) -> str:
        return told(*entering(container), *command)

    def _lasts(self, kind: str, container: str, undo: Callable[[], object]) -> Self:
        self._undo[kind, container] = undo
        return self

    def _end(self, kind: str, container: str) -> Self:
        self._undo.pop((kind, container))()
        return self


def taker_of_address(network: str, image: str, wanted: bool) -> list[str]:
    """A container that only sits on the address which is free now."""
    sleep = ("--entrypoint", "sleep", image, "600")
    return [told("docker", "run", "-d", "--init", "--network", network, *sleep)] if wanted else []


def entering(container: str) -> tuple[str, ...]:
    """The command's prefix that runs it in the container's network."""
    return ("nsenter", "-t", inspect(container, "{{.State.Pid}}"), "-n")


def address(container: str) -> str:
    shown = inspect(container, "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}")
    (found,) = shown.split()
    return found
