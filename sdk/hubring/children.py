"""The processes that a launcher starts: each with a lifeline, a log, and a session of its own.

The session keeps Ctrl-C with the launcher; the lifeline lets no child outlive it. A child is a
program of its own, or a copy of this process: a copy has torch already, which takes a program
more than a second to import.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hubring_common.lifeline import LifelineOwner

LIFELINE_FD = "{lifeline}"
"""Stands in a command for the child's end of its lifeline."""
LOG_TAIL = 2000
"""Bytes of a child's log that an error shows."""


class Process(Protocol):
    """What `subprocess.Popen` offers of it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


@dataclass(frozen=True, slots=True)
class Program:
    """A command of its own. LIFELINE_FD in it becomes the number of the descriptor."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, lifeline: int, out: int, err: int) -> Process:
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            [str(lifeline) if word is LIFELINE_FD else word for word in self.command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **self.environment},
            pass_fds=(lifeline,),
            start_new_session=True,
        )


@dataclass(frozen=True, slots=True)
class Copy:
    """`call` in a copy of this process, which must have no threads yet. It gets the descriptor."""

    call: Callable[[int], int]
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, lifeline: int, out: int, err: int) -> Process:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=self._run, args=(lifeline, out, err))
        process.start()
        return _Copied(process)

    def _run(self, lifeline: int, out: int, err: int) -> None:
        os.setsid()
        LifelineOwner.forget_all()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.update(self.environment)
        sys.exit(self.call(lifeline))


class _Copied:
    """A copy, waited for as `subprocess.Popen` is."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process
        self.pid = process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return code


class Child:
    """One running process. `say` gets each line of its standard output, else the log does."""

    def __init__(
        self, name: str, what: Program | Copy, log: Path, say: Callable[[str], None] | None = None
    ) -> None:
        self.name, self.log = name, log
        self.lifeline = LifelineOwner()
        with log.open("ab") as sink:
            source, out = os.pipe() if say else (-1, sink.fileno())
            self.process = what.start(self.lifeline.child_fd, out, sink.fileno())
        self.lifeline.started()
        self._source, self._say = source, say
        if say:
            os.close(out)

    def relay(self) -> None:
        """Begin to pass its standard output on to `say`, from a thread. Call it once."""
        if self._say is not None:
            arguments = self._source, self._say
            threading.Thread(target=_relay, args=arguments, daemon=True).start()

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return self.process.poll()

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-LOG_TAIL:].decode(errors="replace")

    def kill(self) -> None:
        """End it and whatever it started. Harmless after its end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.lifeline.close()


def _relay(source: int, say: Callable[[str], None]) -> None:
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            say(line.decode(errors="replace").rstrip("\n"))


def end(children: Iterable[Child], grace: float) -> None:
    """Wait up to `grace` seconds for all to end by themselves, then end the rest."""
    deadline = time.monotonic() + grace
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
        child.kill()
