"""Runs a script on a local cluster from start to end: for `hubring run` and `hubring demo`."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from hubring.children import end
from hubring.control import Control
from hubring.display import Display
from hubring.local import LocalCluster
from hubring.plan import LocalPlan
from hubring.supervision import Restarts
from hubring_common.errors import HubringError, RunEnded
from hubring_common.messages import RunState, Status
from hubring_common.report import summary

POLL = 0.25
"""Seconds between two looks at the cluster."""


@dataclass(frozen=True, slots=True)
class Outcome:
    exit_code: int
    summary: dict[str, Any]


class Launch:
    """One run. `display` shows it; `example` is its name in the summary."""

    def __init__(
        self, plan: LocalPlan, script: Sequence[str], example: str, display: Display
    ) -> None:
        self._plan, self._script, self._example, self._display = plan, script, example, display
        self._began = time.monotonic()
        self._cluster = LocalCluster(plan)
        self._lead = 0.0  # seconds from this launch to the coordinator's start
        self._restarts = Restarts()
        self._ended: set[str] = set()
        self._asked = self._answered = 0  # times that a person asked it to stop
        self._woken = threading.Event()

    def run(self) -> Outcome:
        """Raises HubringError where the cluster does not come up. Leaves nothing running."""
        with self._signals():
            try:
                self._start()
                with Control(self._cluster.address, self._cluster.token) as control:
                    self._watch(control)
            finally:
                self._cluster.close()
        return self._outcome()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(_signal: int, _frame: FrameType | None) -> None:
            self._asked += 1
            self._woken.set()

        previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        """Everything at once: the copies' imports are made while the coordinator starts."""
        self._cluster.start_coordinator()
        from hubring import copies

        self._cluster.await_coordinator()
        self._display.say(f"page  {self._cluster.page}")
        copies.start(self._cluster, self._script, self._display.say)

    # --- while it runs ---

    def _watch(self, control: Control) -> None:
        """Until the coordinator has ended, which it does last, or is asked twice in vain."""
        while not self._has_ended():
            try:
                self._look(control.status())
                self._mind_workers(control)
                self._mind_signals(control)
            except HubringError as error:
                if self._asked > 1:
                    self._display.say(str(error))
                    return
            self._woken.wait(POLL)
            self._woken.clear()

    def _has_ended(self) -> bool:
        """A coordinator that was killed is started again: the others train on meanwhile."""
        code = self._cluster.coordinator.returncode
        if code is None:
            return False
        verdict = self._restarts.judge("coordinator", code)
        if code >= 0 or not verdict.again or self._asked:
            return True
        self._display.say(verdict.words)
        self._cluster.restart_coordinator()
        return False

    def _look(self, status: Status) -> None:
        self._lead = time.monotonic() - self._began - status.seconds
        self._display.update(status)

    def _mind_signals(self, control: Control) -> None:
        """The first drains, the second ends at once."""
        if self._asked == self._answered:
            return
        self._answered, at_once = self._asked, self._asked > 1
        drain = "draining: workers finish what they hold; Ctrl-C again ends at once"
        self._display.say("ending now" if at_once else drain)
        control.stop("asked to stop", at_once=at_once)
        if at_once:
            end(self._cluster.workers.values(), grace=0)

    def _mind_workers(self, control: Control) -> None:
        """Start again what may be; end the run where nobody is left to go on with it."""
        for name, child in list(self._cluster.workers.items()):
            code = child.returncode
            if code is None or name in self._ended:
                continue
            verdict = self._restarts.judge(name, code)
            if code and not self._asked:
                self._display.say(verdict.words)
            if verdict.again and not self._asked:
                self._cluster.start_worker(name, self._script)
                continue
            self._ended.add(name)
            if code and len(self._ended) == self._plan.workers:
                control.stop(f"no worker is left: {verdict.words}", at_once=True)

    # --- afterwards ---

    def _outcome(self) -> Outcome:
        seconds = time.monotonic() - self._began
        code = self._cluster.coordinator.returncode or 0
        status = self._cluster.final_status()
        if status is None:
            raise RunEnded(
                f"the coordinator ended (exit code {code}) without a summary",
                who="coordinator",
                todo=f"the end of its log:\n{self._cluster.coordinator.tail()}",
            )
        self._display.finish(status, self._cluster.folder, seconds)
        failed = next((w for w in self._cluster.workers.values() if w.returncode), None)
        if failed is not None and status.state is RunState.FAILED and not status.traceback:
            self._display.say(f"the end of {failed.log}:")
            self._display.say(failed.tail())
        return Outcome(self._exit_code(code, status), self._summary(status, seconds))

    def _exit_code(self, code: int, status: Status) -> int:
        """A run that was ended at once, unasked or asked twice, was not done."""
        stopped_at_once = status.state is RunState.STOPPED and self._asked != 1
        return code or (1 if stopped_at_once else 0)

    def _summary(self, status: Status, seconds: float) -> dict[str, Any]:
        first = self._lead + status.first_step_seconds if status.first_step_seconds else None
        return summary(
            status,
            example=self._example,
            workers=self._plan.workers,
            servers=self._plan.servers,
            seconds=round(seconds, 3),
            first_step_seconds=None if first is None else round(first, 3),
        )
