"""A worker's session with the coordinator: it joins, declares, takes data, finishes, leaves.

Nothing here touches a tensor. Calls are made by the training thread; orders arrive on the
attendance's thread and only set what the waits look at.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hubring_common import rpc, wire
from hubring_common.attend import Attendance
from hubring_common.errors import Busy, HubringError, RunEnded, TimedOut, Unreachable
from hubring_common.ids import BatchKey, Digest
from hubring_common.layout import ModelSpec
from hubring_common.messages import (
    DataDeclaration,
    End,
    Finish,
    Formed,
    Heartbeat,
    Hello,
    Leave,
    ModelDeclaration,
    Quiet,
    Role,
    Seeded,
    Settle,
    Span,
    Take,
    Taken,
    TakeState,
    ToMember,
    Welcome,
    WorkerProgress,
    spans_of,
)
from hubring_common.timing import Timing
from hubring_worker.settling import Settler
from hubring_worker.waits import Waits

log = logging.getLogger(__name__)

LONGEST = 24 * 3600.0
"""Bound of waits that the coordinator ends long before: forming, and the others' last batches."""


class WorkerSession:
    """Implements `DataTasks`. Raises the run's error from every call once the run is over."""

    def __init__(
        self, coordinator: str, token: str, timing: Timing, progress: Callable[[], WorkerProgress]
    ) -> None:
        self.waits = Waits()
        self._timing, self._progress = timing, progress
        self._channel = rpc.open_channel(coordinator)
        self._caller = rpc.Caller(self._channel, "Coordinator", token, f"coordinator {coordinator}")
        self._attendance = Attendance(
            self._channel,
            token,
            timing,
            beat=lambda: Heartbeat(worker=self._progress()),
            orders=self._order,
            lost=self._lose,
        )
        self._formed: Formed | None = None
        self._quiet: Quiet | None = None
        self._end: End | HubringError | None = None
        self._draining = self._leaving = False
        self._leased: set[BatchKey] = set()
        self._settler = Settler(self._send_settled, self._lose)
        self._takes = 0
        self.workers = 1
        """Workers that train now, this one among them, as the coordinator last said."""

    # --- joining ---

    def join(self) -> Welcome:
        hello = Hello(Role.WORKER, host=socket.gethostname(), pid=os.getpid())
        welcome = self._attendance.start(hello)
        self._timing, self.workers = Timing(welcome.timeout), max(1, welcome.workers)
        log.info("%s of run %s, session %d", welcome.name, welcome.run, welcome.session)
        return welcome

    @property
    def welcome(self) -> Welcome:
        return self._attendance.welcome

    @property
    def draining(self) -> bool:
        """The run was asked to stop: no more data is handed out."""
        return self._draining

    @property
    def timing(self) -> Timing:
        return self._timing

    def declare_model(self, spec: ModelSpec, settings: Mapping[str, str]) -> None:
        """Raises ModelMismatch, SettingsMismatch where the run has another."""
        self._call("DeclareModel", ModelDeclaration(self.welcome.session, spec, settings))

    def wait_formed(self) -> Formed:
        """Where the shards are, once this worker may pull, or is to seed them."""

        def formed() -> Formed | None:
            self.raise_if_over()
            ready = self._formed and (self._formed.seeded or self._formed.seed_them)
            return self._formed if ready else None

        return self.waits.until("the cluster to form", formed, LONGEST)

    def mark_seeded(self, digests: tuple[Digest, ...]) -> None:
        self._call("MarkSeeded", Seeded(self.welcome.session, digests))

    # --- data ---

    def declare(self, settings: Mapping[str, str], batches: int) -> None:
        self._call("DeclareData", DataDeclaration(self.welcome.session, settings, batches))

    def take(self, epoch: int) -> Span | None:
        self._takes += 1
        while not self._draining:
            take = Take(self.welcome.session, epoch, self._takes)
            taken: Taken = self._call("TakeTask", take)
            self.workers = max(1, taken.workers)
            if taken.state is TakeState.OVER:
                break
            if taken.state is TakeState.TASK and taken.span is not None:
                self._leased.update(taken.span.keys())
                return taken.span
            log.info("waiting: %s", taken.why)
        return None

    def give_back(self, spans: Sequence[Span]) -> None:
        for span in spans:
            self._leased.difference_update(span.keys())
        if spans:
            self._call("SettleTasks", Settle(self.welcome.session, returned=tuple(spans)))

    def settle(self, done: Iterable[BatchKey], returned: Iterable[BatchKey]) -> None:
        """Every shard has `done`; `returned` are to be trained again. Returns at once.

        Keys that were not leased here are nobody else's matter.
        """
        mine, back = self._leased.intersection(done), self._leased.intersection(returned)
        if mine or back:
            self._leased -= mine | back
            self._settler.put(mine, back)

    def _send_settled(self, done: set[BatchKey], returned: set[BatchKey]) -> None:
        spans = spans_of(sorted(done)), spans_of(sorted(returned))
        self._call("SettleTasks", Settle(self.welcome.session, *spans))

    # --- the end ---

    def finish(self) -> Quiet:
        """Take no more; wait until nobody has a push in flight. Then the weights are final."""
        self.give_back(spans_of(sorted(self._leased)))
        self._settler.flush()
        self._call("FinishWork", Finish(self.welcome.session))

        def quiet() -> Quiet | None:
            if self._quiet is None:
                self.raise_if_over()
            return self._quiet

        return self.waits.until("the other workers' last batches", quiet, LONGEST)

    def leave(self, leave: Leave) -> None:
        """The last word, once; then wait, a lease at most, for the run's end after a good one."""
        self._leaving = True
        try:
            self._caller.call("LeaveRun", leave, self._timing.call())
            if not leave.kind:
                self.waits.until("the end of the run", lambda: self._end, self._timing.lease)
        except HubringError as error:
            log.warning("left without the coordinator's answer: %s", error)

    def close(self) -> None:
        self._settler.close()
        self._attendance.close()
        self._channel.close()

    def raise_if_over(self) -> None:
        """Raises the error that ended the run or this session, if one did."""
        if self._end is not None and not self._leaving:
            raise over(self._end)

    # --- orders ---

    def _order(self, message: ToMember) -> None:
        with self.waits.condition:
            self._formed = message.formed or self._formed
            self._quiet = message.quiet or self._quiet
            if message.drain is not None and not self._draining:
                log.info("draining: %s", message.drain.why)
                self._draining = True
            self._end = message.end or self._end
            self.waits.condition.notify_all()

    def _lose(self, error: HubringError) -> None:
        with self.waits.condition:
            self._end = self._end or error
            self.waits.condition.notify_all()

    def _call(self, name: str, request: Any) -> Any:
        """Sends again what did not arrive, as long as the attendance has not given up.

        Every call is idempotent at the coordinator: a lost answer does no harm.
        """
        with self.waits.named("the coordinator"):
            while True:
                self.raise_if_over()
                try:
                    return self._caller.call(name, request, self._timing.call())
                except (Unreachable, TimedOut, Busy):
                    with self.waits.condition:
                        self.waits.condition.wait(self._timing.heartbeat)


def over(end: End | HubringError) -> HubringError:
    """The error that the training thread raises after `end`."""
    if isinstance(end, HubringError):
        return end
    if end.kind in {"", "ScriptFailed"}:
        outcome = end.state.name.lower()
        return RunEnded(f"the run is {outcome}: {end.why}", who=end.who)
    return wire.make_error(end.kind, end.why, who=end.who)
