"""One worker's dealings with one shard: push ids, resends, versions seen (P1, I2)."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hubring_common.carrier.base import Carrier, Extents, digest_of, total
from hubring_common.errors import InvalidMessage, LeaseLost, Retryable
from hubring_common.ids import BatchKey, Digest, PushId, Seq, Session
from hubring_common.messages import (
    GroupHypers,
    PullHeader,
    PushAnswer,
    PushHeader,
    SeedHeader,
    Verdict,
)
from hubring_common.timing import Timing
from hubring_worker.flat import FlatModel

log = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE = 6
"""Leases that a call is tried again."""


@dataclass(frozen=True, slots=True)
class Order:
    """A step as every shard is told it."""

    keys: tuple[BatchKey, ...]
    samples: int
    present: frozenset[int]
    bits: bytes
    groups: tuple[GroupHypers, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one shard made of an order. `settled`: the keys that it has, by push `seq`, or
    `confessed`: by an earlier one, so that this push was not applied.
    """

    settled: frozenset[BatchKey]
    seq: Seq
    confessed: bool
    staleness: int = 0
    resent: int = 0
    not_finite: str = ""


class ShardLink:
    """Holds the next push's number; an id is sent until the shard answers it, and never dropped.

    `alive` raises once the run is over, so that no resend outlives it.
    """

    def __init__(
        self,
        *,
        run: str,
        shard: int,
        session: Session,
        carrier: Carrier,
        flat: FlatModel,
        timing: Timing,
        alive: Callable[[], None],
    ) -> None:
        self._run, self._shard, self._session = run, shard, session
        self._carrier, self._flat, self._timing, self._alive = carrier, flat, timing, alive
        self._seq = self._version = self._resent = 0

    def seed(self) -> Digest:
        return self._seed(self._flat.weight_extents(self._shard), still=False)

    def seed_still(self, tensors: Extents) -> None:
        """Bring the shard's part of the still tensors; nothing where it keeps none."""
        if tensors:
            self._seed(tensors, still=True)

    def pull_still(self, tensors: Extents) -> None:
        """Fill `tensors`, the shard's part of the still tensors."""
        if tensors:
            have = digest_of(tensors)  # workers often begin with the same checkpoint
            header = PullHeader(self._run, self._shard, self._session, still=True, have=have)
            self._insist(total(tensors), lambda t: self._carrier.pull(header, tensors, t))

    def pull(self) -> None:
        weights = self._flat.weight_extents(self._shard)
        header = PullHeader(self._run, self._shard, self._session)
        answer = self._insist(total(weights), lambda t: self._carrier.pull(header, weights, t))
        self._see(answer.version)

    def push(self, order: Order) -> Outcome:
        """Returns when the shard has answered and its newest version has landed."""
        grads = self._flat.grad_extents(self._shard, order.present)
        weights = self._flat.weight_extents(self._shard)
        header = self._header(order, total(grads), digest_of(grads))
        before, base = self._resent, self._version
        answer = self._insist(
            total(grads) + total(weights), lambda t: self._carrier.push(header, grads, weights, t)
        )
        self._see(answer.version)
        return self._outcome(order, answer, base, self._resent - before)

    def close(self) -> None:
        self._carrier.close()

    def _seed(self, extents: Extents, *, still: bool) -> Digest:
        digest, nbytes = digest_of(extents), total(extents)
        header = SeedHeader(self._run, self._shard, self._session, nbytes, digest, still)
        return self._insist(nbytes, lambda t: self._carrier.seed(header, extents, t)).digest

    def _header(self, order: Order, nbytes: int, digest: Digest) -> PushHeader:
        return PushHeader(
            run=self._run,
            shard=self._shard,
            id=PushId(self._session, self._seq),
            first_incomplete=self._seq,  # nothing else is outstanding
            keys=order.keys,
            samples=order.samples,
            base=self._version,
            present=order.bits,
            groups=order.groups,
            nbytes=nbytes,
            digest=digest,
        )

    def _outcome(self, order: Order, answer: PushAnswer, base: int, resent: int) -> Outcome:
        if answer.verdict in {Verdict.APPLIED, Verdict.DUPLICATE}:
            self._seq += 1
            stale = max(0, answer.lsn - 1 - base)
            keys = frozenset(order.keys)
            return Outcome(keys, self._seq - 1, confessed=False, staleness=stale, resent=resent)
        # Refused, so the id is unused and names the next push.
        keys, param = frozenset(answer.done_keys), answer.param
        return Outcome(keys, self._seq, confessed=True, resent=resent, not_finite=param)

    def _see(self, version: int) -> None:
        if version < self._version:
            fact = f"shard {self._shard} went back from version {self._version} to {version}"
            raise InvalidMessage(fact, todo="its server lost its memory; start the run anew")
        self._version = version

    def _insist(self, nbytes: int, call: Callable[[float], T]) -> T:
        """`call`, again and again while its errors are retryable and the run goes on.

        A server that died ends the run, by the coordinator's word. One that lives and cannot be
        reached from here raises its last error after PATIENCE leases.
        """
        pause, began = self._timing.heartbeat / 10, time.monotonic()
        while True:
            self._alive()
            try:
                return call(self._timing.call(nbytes))
            except LeaseLost:
                raise
            except Retryable as error:
                if time.monotonic() - began > PATIENCE * self._timing.lease:
                    raise
                log.warning("shard %d: %s; sending again", self._shard, error.fact)
            self._resent += 1
            time.sleep(pause)
            pause = min(2 * pause, self._timing.heartbeat)
