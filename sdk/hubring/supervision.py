"""Whether a worker that ended is started again, and the one that `hubring worker` watches over."""

import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NamedTuple

from hubring_common.errors import RETRY_EXIT_CODES
from hubring_common.lifeline import LifelineOwner

log = logging.getLogger(__name__)

LIMIT = 3
"""Times that one worker is started again."""


class Verdict(NamedTuple):
    again: bool
    words: str


class Restarts:
    """Counts the restarts of each worker."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._count: Counter[str] = Counter()

    def judge(self, name: str, code: int) -> Verdict:
        """`code` as subprocess gives it: negative where a signal ended the process."""
        how = f"{name} ended ({how_it_ended(code)})"
        if code >= 0 and code not in RETRY_EXIT_CODES:
            return Verdict(again=False, words=how)
        if self._count[name] >= self._limit:
            return Verdict(again=False, words=f"{how}, after {self._limit} restarts")
        self._count[name] += 1
        return Verdict(again=True, words=f"{how}; starting it again")


def how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name


class Supervised:
    """One worker's script as a child process. SIGTERM and Ctrl-C are passed on."""

    def __init__(self, script: Sequence[str], environment: Mapping[str, str]) -> None:
        self._script = script
        self._environment = {**os.environ, **environment}
        self._restarts = Restarts()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self) -> int:
        """The exit code of the last run of the script; 128 + n where signal n ended it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        while True:
            code = self._once()
            verdict = self._restarts.judge("the script", code)
            if code:
                log.warning("%s", verdict.words)
            if self._stopped or not verdict.again:
                return code if code >= 0 else 128 - code

    def _once(self) -> int:
        lifeline = LifelineOwner()
        fd = lifeline.child_fd
        command = [sys.executable, "-m", "hubring.script", "--lifeline", str(fd), *self._script]
        self._child = subprocess.Popen(  # noqa: S603 - our own interpreter
            command, env=self._environment, pass_fds=(fd,)
        )
        lifeline.started()
        try:
            return self._child.wait()
        finally:
            lifeline.close()

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._stopped = True
        if self._child is not None:
            self._child.send_signal(number)
