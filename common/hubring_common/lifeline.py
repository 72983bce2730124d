"""A pair of sockets between a launcher and its child: the child says where it listens, and ends
when the launcher is gone, however it went (end of file, also after kill -9).
"""

import os
import socket
import threading
import weakref
from typing import ClassVar

from hubring_common.errors import HubringError, TimedOut, Unreachable

ORPHAN_EXIT = 143


class Lifeline:
    """The child's end, from the descriptor that the launcher passed on."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def announce(self, text: str) -> None:
        self._socket.sendall(text.encode() + b"\n")

    def _watch(self) -> None:
        try:
            while self._socket.recv(1):
                pass
        finally:  # end of file, or a reset where the launcher had not read the announcement
            os._exit(ORPHAN_EXIT)


class LifelineOwner:
    """The launcher's end. Pass `child_fd` on, then call `started`."""

    _all: ClassVar["weakref.WeakSet[LifelineOwner]"] = weakref.WeakSet()

    @classmethod
    def forget_all(cls) -> None:
        """In a forked copy of the launcher: let go of its ends, or none would see it end."""
        for owner in tuple(cls._all):
            owner.close()

    def __init__(self) -> None:
        self._all.add(self)
        self._ours, self._theirs = socket.socketpair()
        self.child_fd = self._theirs.fileno()

    def started(self) -> None:
        """The child holds its own copy now."""
        self._theirs.close()

    def announcement(self, who: str, timeout: float) -> str:
        """What the child announces. Raises TimedOut, or Unreachable where it ended first."""
        self._ours.settimeout(timeout)
        received = b""
        try:
            while not received.endswith(b"\n"):
                part = self._ours.recv(4096)
                if not part:
                    raise self._ended(who)
                received += part
        except TimeoutError:
            raise TimedOut(f"{who} did not start within {timeout:.0f} s", who=who) from None
        return received.decode().strip()

    def _ended(self, who: str) -> HubringError:
        return Unreachable(f"{who} ended before it was ready", who=who, todo="see its log")

    def close(self) -> None:
        self._ours.close()
