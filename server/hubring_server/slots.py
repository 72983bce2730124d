"""A server's identity: the slot that it holds by flock in its state folder.

Containers, addresses and names change over a restart; the slot does not. Servers that share a
folder take slot-0, slot-1, ... as they come.
"""

import fcntl
import os
from pathlib import Path

from hubring_common.errors import UsageError

SLOTS = 1024


class Slot:
    """The lowest free slot of `folder`, held until the process ends or `release`."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.number, self._fd = _claim(folder)
        except OSError as error:
            fact = f"cannot use the state folder {folder}: {error.strerror}"
            raise UsageError(fact, todo="give --state a folder that can be written") from None

    def release(self) -> None:
        os.close(self._fd)


def _claim(folder: Path) -> tuple[int, int]:
    for number in range(SLOTS):
        fd = os.open(folder / f"slot-{number}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        return number, fd
    raise UsageError(f"all {SLOTS} slots of {folder} are held", todo="give --state another folder")
