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
from hubring_common.ids import BatchKey, Digest, Seq
from hubring_common.layout import ModelSpec
from hubring_common.messages import (
    BatchTotals,
    DataDeclaration,
    Done,
    End,
    EvaluationPart,
    EvaluationState,
    EvaluationTask,
    Finish,
    Formed,
    Heartbeat,
    Hello,
    Leave,
    MemberDrain,
    ModelDeclaration,
    Quiet,
    Recall,
    Role,
    Seeded,
    Settle,
    Span,
    StopRule,
    StopRules,
    Take,
    Taken,
    ToMember,
    Welcome,
    WorkerProgress,
    spans_of,
)
from hubring_common.timing import Timing
from hubring_worker.settling import News, Settler, pushed_as
from hubring_worker.stock import Stock
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
        self._is_closed = False
        self._alone = ""
        self._leased: set[BatchKey] = set()
        self._settler = Settler(self._send_news, self._lose)
        self._takes = 0
        self._stock = Stock(
            self._ask,
            self.waits,
            self.raise_if_over,
            lambda: self._attendance.is_away,
            lambda: 3 * self._timing.heartbeat,
        )
        self.workers = 1
        """Workers that train now, this one among them, as the coordinator last said."""

    # --- joining ---

    def join(self, torch: str) -> Welcome:
        """`torch`: its version here."""
        hello = Hello(Role.WORKER, host=socket.gethostname(), pid=os.getpid(), torch=torch)
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

    @property
    def alone(self) -> str:
        """Why this worker leaves before the others; empty while it does not."""
        return self._alone

    def drain(self, why: str) -> None:
        """Take no more data, and wait for no others. Safe in a signal handler."""
        self._alone = self._alone or why
        self._draining = True
        self._stock.close_soon()

    def declare_model(self, spec: ModelSpec, settings: Mapping[str, str]) -> None:
        """Raises ModelMismatch, SettingsMismatch where the run has another."""
        self._call("DeclareModel", ModelDeclaration(self.welcome.session, spec, settings))

    def wait_formed(self) -> Formed:
        """Where the shards are, once this worker may pull, or is to seed them."""

        def formed() -> Formed | None:
            self.raise_if_over()
            if self._alone:
                raise RunEnded(f"this worker left before the cluster formed: {self._alone}")
            ready = self._formed and (self._formed.seeded or self._formed.seed_them)
            return self._formed if ready else None

        return self.waits.until("the cluster to form", formed, LONGEST)

    def mark_seeded(self, digests: tuple[Digest, ...]) -> None:
        self._call("MarkSeeded", Seeded(self.welcome.session, digests))

    # --- data ---

    def declare(self, settings: Mapping[str, str], batches: int) -> None:
        self._call("DeclareData", DataDeclaration(self.welcome.session, settings, batches))

    def take(self, epoch: int) -> Span | None:
        """One batch of `epoch`, or of an earlier one that lost a worker; None: none is left."""
        key = None if self._draining else self._stock.take(epoch)
        self.raise_if_over()
        return Span(key.epoch, key.batch, 1) if key else None

    def _ask(self, epoch: int, ahead: bool, pace: float) -> Taken:
        if not ahead:
            # Else the coordinator might call an epoch over whose batches were recalled here, and
            # nobody would come back for them.
            self._settler.flush()
        self._takes += 1
        take = Take(self.welcome.session, epoch, self._takes, pace, ahead)
        taken: Taken = self._insist("TakeTask", take)
        self.workers = max(1, taken.workers)
        for span in taken.spans:
            self._leased.update(span.keys())
        return taken

    @property
    def batch_seconds(self) -> float:
        """Of this worker's work on one batch, lately; 0: not known yet."""
        return self._stock.batch_seconds

    def give_back(self, spans: Sequence[Span]) -> None:
        """Left to others. Who leaves alone keeps them till then: others must train them."""
        if self._alone:
            return
        for span in spans:
            self._leased.difference_update(span.keys())
        if spans:
            self._call("SettleTasks", Settle(self.welcome.session, returned=tuple(spans)))

    def settle(
        self, done: Iterable[BatchKey], returned: Iterable[BatchKey], seq: Seq, *, confessed: bool
    ) -> None:
        """Every shard has `done`, by push `seq` or, `confessed`, by an earlier one; `returned`
        are to be trained again. Returns at once.

        Keys that were not leased here are nobody else's matter.
        """
        mine, back = self._leased.intersection(done), self._leased.intersection(returned)
        if mine or back:
            self._leased -= mine | back
            pushed = pushed_as(mine, seq, confessed=confessed)
            self._settler.put(pushed, spans_of(sorted(back)))

    def _send_news(self, news: News) -> None:
        settle = Settle(self.welcome.session, tuple(news.done), tuple(news.returned), news.recall)
        done: Done = self._insist("SettleTasks", settle)
        self._stock.hear(done.whole_below)

    def _give(self, recall: Recall) -> None:
        """On the attendance's thread: another worker has nothing to do."""
        if recall.keep:
            spans = self._stock.recall_ahead(recall.epoch, recall.keep)
        else:
            spans = self._stock.recall(recall.epoch, recall.count)
        for span in spans:
            self._leased.difference_update(span.keys())
        self._settler.put(returned=spans, recall=recall.recall)

    # --- evaluation and stop rules ---

    def evaluate(
        self,
        number: int,
        batches: int,
        settings: Mapping[str, str],
        measured: tuple[BatchTotals, ...],
        buffers: bytes = b"",
    ) -> EvaluationTask:
        """Waits for the others. Returns the next task, or the result."""
        part = EvaluationPart(self.welcome.session, number, batches, settings, measured, buffers)
        with self.waits.named(f"evaluation {number}"):
            task: EvaluationTask = self._insist("Evaluate", part)
            while task.state is EvaluationState.WAIT:
                log.info("waiting for %s", task.why)
                task = self._insist("Evaluate", part)
        return task

    def stop_when(self, rules: tuple[StopRule, ...]) -> None:
        """`rules` are all that the script has given so far. Raises SettingsMismatch."""
        self._call("DeclareStopRules", StopRules(self.welcome.session, rules))

    # --- the end ---

    def finish(self, buffers: bytes) -> Quiet:
        """Take no more; wait until nobody has a push in flight. Then the weights are final.

        Who leaves alone waits for nobody, and the others train on.
        """
        self._stock.close()
        self.give_back(spans_of(sorted(self._leased)))
        self._settler.flush()
        if self._alone:
            return Quiet(write_model=False)
        self._call("FinishWork", Finish(self.welcome.session, buffers))

        def quiet() -> Quiet | None:
            if self._quiet is None:
                self.raise_if_over()
            return self._quiet or (Quiet(write_model=False) if self._alone else None)

        return self.waits.until("the other workers' last batches", quiet, LONGEST)

    def leave(self, leave: Leave) -> None:
        """The last word, once; then wait, a lease at most, for the run's end after a good one."""
        self._leaving = True
        try:
            if self._alone and not leave.kind:
                drain = MemberDrain(self.welcome.name, self._alone)
                self._caller.call("DrainMember", drain, self._timing.call())
            self._caller.call("LeaveRun", leave, self._timing.call())
            if not (leave.kind or self._alone):
                self.waits.until("the end of the run", lambda: self._end, self._timing.lease)
        except HubringError as error:
            log.warning("left without the coordinator's answer: %s", error)

    def close(self) -> None:
        self._is_closed = True
        self._stock.close()
        self._settler.close()
        self._attendance.close()
        self._channel.close()

    def raise_if_over(self) -> None:
        """Raises the error that ended the run or this session, if one did."""
        if self._end is not None and not self._leaving:
            raise over(self._end)

    # --- orders ---

    def _order(self, message: ToMember) -> None:
        if message.recall is not None:
            self._give(message.recall)
        with self.waits.condition:
            self._formed = message.formed or self._formed
            self._quiet = message.quiet or self._quiet
            if message.drain is not None and not self._draining:
                log.info("draining: %s", message.drain.why)
                self._alone = message.drain.why if message.drain.alone else ""
                self._draining = True
                self._stock.close()
            self._end = message.end or self._end
            self.waits.condition.notify_all()

    def _lose(self, error: HubringError) -> None:
        with self.waits.condition:
            self._end = self._end or error
            self.waits.condition.notify_all()

    def _call(self, name: str, request: Any) -> Any:
        """The answer, for the training thread: it waits."""
        with self.waits.named("the coordinator"):
            return self._insist(name, request)

    def _insist(self, name: str, request: Any) -> Any:
        """Sends again what did not arrive, as long as the attendance has not given up.

        Every call is idempotent at the coordinator: a lost answer does no harm.
        """
        while True:
            self.raise_if_over()
            try:
                return self._caller.call(name, request, self._timing.call())
            except (Unreachable, TimedOut, Busy):
                if self._is_closed:
                    raise
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
