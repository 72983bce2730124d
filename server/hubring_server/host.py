"""The shell around one shard's machine: its thread, its tensors, its waiting callers.

Callers (gRPC threads) stage bytes and judge them; one thread tells the machine and performs its
effects in list order: Store before Apply before the answers, as the machine lists them.
"""

import itertools
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from hubring_common.carrier.base import Version
from hubring_common.errors import HubringError, InvalidMessage, RunEnded, TimedOut
from hubring_common.ids import Lsn, Session, View
from hubring_common.messages import (
    PullHeader,
    PushAnswer,
    PushHeader,
    SeedAnswer,
    SeedHeader,
    ShardProgress,
    Verdict,
)
from hubring_server.arena import CopiedVersion, Payload, Pool, Staged, Still
from hubring_server.judge import Judge, refusal
from hubring_server.log import Entry, Log
from hubring_server.machine import messages as m
from hubring_server.machine.mode import Mode
from hubring_server.machine.shard import Shard, payloads
from hubring_server.weights import ShardWeights, present_of

log = logging.getLogger(__name__)

BUFFERS = 16
"""Pushes that may be on their way in, and versions on their way out, at once."""


class ShardHost:
    """Implements `ShardPort`. `crashed` hears of an error that ends the shard."""

    def __init__(
        self,
        run: str,
        weights: ShardWeights,
        mode: Mode,
        sink: Log,
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._judge = Judge(run, weights.layout, weights.shard)
        self._weights, self._log, self._crashed = weights, sink, crashed
        self._machine = Shard(mode, has_still=weights.still_nbytes > 0)
        self._incoming = Pool(weights.nbytes, BUFFERS, "buffers for pushes")
        self._outgoing = Pool(weights.nbytes, BUFFERS, "buffers for pulls")
        # Beside the copy that the shard keeps, one is on its way in at most.
        self._still = Pool(weights.still_nbytes, 1, "buffers for still tensors", keep=False)
        self._handles = itertools.count(1)
        self._lock = threading.Lock()  # of the three below
        self._payloads: dict[m.Handle, Payload] = {}
        self._callers: defaultdict[Hashable, list[Future[Any]]] = defaultdict(list)
        self._ended: HubringError | None = None  # what callers hear once nobody answers
        self._weights_lock = threading.Lock()  # held while a record is applied, or copied out
        self._version: Lsn = 0
        self._stats = {"applied": 0, "duplicates": 0, "refused": 0, "apply_seconds": 0.0}
        self._mailbox: SimpleQueue[m.Event | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"shard-{weights.shard}")
        self._thread.start()

    # --- called by carriers ---

    def stage_seed(self, header: SeedHeader, timeout: float) -> Staged:
        return Staged(self._room_for(header), self._judge.seed_ranges(header), timeout)

    def seed(self, header: SeedHeader, staging: Staged, timeout: float) -> SeedAnswer:
        handle = self._hold(header, staging)
        if name := "" if header.still else self._not_finite(handle):
            self._free(handle)
            raise InvalidMessage(f"{name} has a NaN or Inf in its first weights")
        event = m.Seed(header.session, header.digest, handle, header.still)
        key = (header.session, header.digest, header.still)
        answer = self._ask(key, event, timeout)
        if isinstance(answer, m.SeedRefuse):
            raise refusal(answer.why, f"session {header.session}")
        return SeedAnswer(header.digest)

    def stage_push(self, header: PushHeader, timeout: float) -> Staged:
        ranges = self._judge.push_ranges(header)
        with self._weights_lock:  # the slots that it looks at grow while a record is applied
            self._weights.check_hypers(header)
        return Staged(self._incoming, ranges, timeout)

    def push(
        self, header: PushHeader, staging: Staged, timeout: float
    ) -> tuple[PushAnswer, Version]:
        handle = self._hold(header, staging)
        present = present_of(header.present, self._judge.params)
        if name := self._weights.first_not_finite(self._payloads[handle].data, present):
            self._free(handle)
            return self._answered(PushAnswer(Verdict.NOT_FINITE, 0, 0, 0, 0, (), name), timeout)
        keys = frozenset(header.keys)
        event = m.Push(header.id, header.first_incomplete, keys, header.digest, handle)
        return self._answered(_answer(self._ask(header.id, event, timeout)), timeout)

    def pull(self, header: PullHeader, timeout: float) -> Version:
        self._judge.pull(header)
        if not self._version:
            raise refusal(m.Why.UNSEEDED, self._thread.name)
        return self._still_version() if header.still else self._copy_out(timeout)

    # --- called by the server's process ---

    def set_members(self, view: View, sessions: Iterable[Session], timeout: float) -> None:
        """Returns when the view is logged on every sink. Raises TimedOut."""
        self._ask(view, m.Members(view, frozenset(sessions)), timeout)

    def progress(self) -> ShardProgress:
        shard, nbytes = self._weights.shard, self._weights.nbytes
        counts: dict[str, Any] = {
            **self._stats,
            "queue": len(self._payloads),
            "batches": self._machine.done.leased,
        }
        return ShardProgress(shard, nbytes, self._version, **counts)

    def snapshot(self) -> dict[str, Any]:
        """The shard's whole state as plain data. Only while nothing is in flight."""
        with self._weights_lock:
            return {"machine": self._machine.snapshot(), **self._weights.snapshot()}

    def check(self) -> None:
        """The machine's invariants, and that weights are finite (I10). Only while quiet."""
        self._machine.check(self._payloads.keys())
        assert not self._weights.first_not_finite(self._weights.data, self._judge.all), "I10"

    def close(self) -> None:
        self._mailbox.put(None)
        self._thread.join()
        self._end_callers(RunEnded("the server is closing", who=self._thread.name))

    # --- callers and payloads ---

    def _hold(self, header: PushHeader | SeedHeader, staging: Staged) -> m.Handle:
        handle, payload = next(self._handles), Payload(header, staging.surrender())
        with self._lock:
            self._payloads[handle] = payload
        return handle

    def _free(self, handle: m.Handle) -> None:
        with self._lock:
            payload = self._payloads.pop(handle)
        self._room_for(payload.header).give(payload.data)

    def _room_for(self, header: PushHeader | SeedHeader) -> Pool:
        return self._still if isinstance(header, SeedHeader) and header.still else self._incoming

    def _not_finite(self, handle: m.Handle) -> str:
        """The first parameter with a NaN or Inf in first weights, or ""."""
        return self._weights.first_not_finite(self._payloads[handle].data, self._judge.all)

    def _ask(self, key: Hashable, event: m.Event, timeout: float) -> Any:
        """Tell the machine; wait for its answer to whoever asks under `key`."""
        future: Future[Any] = Future()
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._callers[key].append(future)
        self._mailbox.put(event)
        try:
            return future.result(timeout)
        except TimeoutError:
            fact = f"no answer for {timeout:.1f} s"
            raise TimedOut(fact, who=self._thread.name, todo="send it again") from None

    def _answer_callers(self, key: Hashable, answer: m.Effect) -> None:
        with self._lock:
            futures = self._callers.pop(key, [])
        for future in futures:
            future.set_result(answer)

    def _end_callers(self, error: HubringError) -> None:
        """Those who wait hear `error` now, and later ones at once."""
        with self._lock:
            self._ended = self._ended or error
            futures = [f for waiting in self._callers.values() for f in waiting]
            self._callers.clear()
        for future in futures:
            future.set_exception(error)

    def _answered(self, answer: PushAnswer, timeout: float) -> tuple[PushAnswer, Version]:
        return answer, self._copy_out(timeout)

    def _copy_out(self, timeout: float) -> Version:
        buffer = self._outgoing.take(timeout)
        with self._weights_lock:
            buffer.copy_(self._weights.data)
            return CopiedVersion(self._outgoing, self._version, buffer)

    def _still_version(self) -> Version:
        with self._weights_lock:
            return Still(self._version, self._weights.still)

    # --- the shard's thread ---

    def _run(self) -> None:
        try:
            while (event := self._mailbox.get()) is not None:
                for effect in self._machine.handle(event):
                    self._perform(effect)
        except BaseException as error:  # a broken shard ends its server, whatever broke it
            log.exception("shard %d ends", self._weights.shard)
            self._end_callers(RunEnded(f"the shard failed: {error}", who=self._thread.name))
            self._crashed(error)

    def _perform(self, effect: m.Effect) -> None:
        match effect:
            case m.Store(record):
                held = {handle: self._payloads[handle] for handle in payloads(record)}
                self._log.store(Entry(record, held), lambda lsn: self._mailbox.put(m.Stored(lsn)))
            case m.Apply(record):
                self._apply(record)
            case m.Free(handle):
                self._free(handle)
            case m.Ack(push_id, _, again):
                self._stats["duplicates"] += again
                self._answer_callers(push_id, effect)
            case m.Refuse(push_id):
                self._stats["refused"] += 1
                self._answer_callers(push_id, effect)
            case m.SeedAck() | m.SeedRefuse():
                self._answer_callers((effect.session, effect.digest, effect.still), effect)
            case m.MembersAck(view):
                self._answer_callers(view, effect)

    def _apply(self, record: m.Record) -> None:
        started = time.perf_counter()
        with self._weights_lock:
            self._weights.apply(record, self._payloads)
            if self._version or _brings_weights(record):
                self._version = record.lsn
        self._stats["applied"] += 1
        self._stats["apply_seconds"] += time.perf_counter() - started


def _brings_weights(record: m.Record) -> bool:
    return isinstance(record, m.SeedRecord) and not record.seed.still


def _answer(effect: m.Ack | m.Refuse) -> PushAnswer:
    """What the machine said, for the wire. Raises the error that a refusal stands for."""
    match effect:
        case m.Ack(_, lsn, again):
            return PushAnswer(Verdict.DUPLICATE if again else Verdict.APPLIED, lsn, 0, 0, 0)
        case m.Refuse(_, m.Why.BATCH_DONE, keys):
            return PushAnswer(Verdict.BATCH_DONE, 0, 0, 0, 0, tuple(sorted(keys)))
        case m.Refuse(push_id, why):
            raise refusal(why, f"push {push_id.seq} of session {push_id.session}")
