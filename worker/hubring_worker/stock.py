"""The tasks that this worker holds and has not begun, and the thread that asks for more.

So the coordinator is on no step's path, and training goes on for a while where it is away.
What is in stock can still be recalled for a worker that has nothing to do.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from hubring_common.errors import HubringError
from hubring_common.ids import BatchKey
from hubring_common.messages import Span, Taken, TakeState
from hubring_worker.pace import Pace
from hubring_worker.waits import Waits

log = logging.getLogger(__name__)

ENOUGH = 60.0
"""Seconds of work in stock above which no more is asked for."""
QUIET, SOON = 1.0, 0.05
"""Seconds until the next question ahead, after one that brought nothing; and after one for which
another worker is asked to give something up.
"""

Ask = Callable[[int, bool, float], Taken]
"""(epoch, ahead, seconds a batch) -> the coordinator's answer. Raises what it refuses with."""


class Stock:
    """`take` is the training thread's; the others may call the rest. `alive` raises once the run
    is over. `away`: the coordinator cannot be reached now. `patience`: seconds without an answer
    that count as much.
    """

    def __init__(
        self,
        ask: Ask,
        waits: Waits,
        alive: Callable[[], None],
        away: Callable[[], bool],
        patience: Callable[[], float],
    ) -> None:
        self._ask, self._waits, self._alive = ask, waits, alive
        self._away, self._patience = away, patience
        self._changed = threading.Condition()
        self._pace = Pace()
        self._spans: list[Span] = []  # by epoch and batch: the order of training
        self._level = self._epoch = self._whole_below = 0
        self._asked = self._quiet_until = 0.0
        self._needed = self._is_fresh = self._is_closed = False
        self._over = -1
        self._why = ""
        self._error: HubringError | None = None
        self._thread = threading.Thread(target=self._run, name="stock", daemon=True)
        self._thread.start()

    # --- the training thread ---

    def take(self, epoch: int) -> BatchKey | None:
        """The next batch of `epoch`, or of an earlier one; None: this epoch has none left.

        With the coordinator away a pass ends with its stock, if later epochs are in stock and
        the coordinator has said that every batch of this one is with somebody.
        """
        with self._changed:
            self._begin(epoch)
            key = self._pop()
            if key is None:
                with self._waits.named("data"):
                    key = self._wait()
            if key is None:
                self._pace.paused()
            else:
                self._pace.began(time.monotonic())
            return key

    def _begin(self, epoch: int) -> None:
        self._pace.ended(time.monotonic())
        self._epoch, self._over = epoch, -1

    def _wait(self) -> BatchKey | None:
        self._needed, self._asked = True, time.monotonic()
        self._changed.notify_all()
        while (key := self._pop()) is None and not self._is_at_end():
            self._changed.wait(self._patience() / 4)
        self._needed = False
        return key

    def _is_at_end(self) -> bool:
        """Raises the error that ended the run, or the asking."""
        self._alive()
        if self._error is not None:
            raise self._error
        silent = self._away() or time.monotonic() - self._asked > self._patience()
        may_pass = bool(self._spans) and self._epoch < self._whole_below
        return self._is_closed or self._over == self._epoch or (silent and may_pass)

    def _pop(self) -> BatchKey | None:
        if self._is_closed or not self._spans or self._spans[0].epoch > self._epoch:
            return None
        first = self._spans[0]
        rest = Span(first.epoch, first.first + 1, first.count - 1)
        self._spans[:1] = [rest] if rest.count else []
        if self._is_low():
            self._changed.notify_all()
        return BatchKey(first.epoch, first.first)

    # --- any thread ---

    @property
    def batch_seconds(self) -> float:
        return self._pace.seconds

    def hear(self, whole_below: int) -> None:
        """Every batch of the epochs from this one on, below `whole_below`, is with somebody."""
        self._whole_below = whole_below or self._whole_below

    def recall(self, epoch: int, count: int) -> tuple[Span, ...]:
        """Take up to `count` batches of `epoch` out, the last ones first."""
        with self._changed:
            return self._take_out(epoch, count)

    def recall_ahead(self, epoch: int, keep: int) -> tuple[Span, ...]:
        """Take all but `keep` batches out of each epoch from `epoch` on."""
        with self._changed:
            held: Counter[int] = Counter()
            for span in self._spans:
                held[span.epoch] += span.count if span.epoch >= epoch else 0
            cuts = ((e, count - keep) for e, count in held.items() if count > keep)
            return tuple(span for e, cut in cuts for span in self._take_out(e, cut))

    def _take_out(self, epoch: int, count: int) -> tuple[Span, ...]:
        found: list[Span] = []
        for span in [s for s in reversed(self._spans) if s.epoch == epoch]:
            if (cut := min(count, span.count)) == 0:
                break
            kept, count = span.count - cut, count - cut
            at = self._spans.index(span)
            self._spans[at : at + 1] = [Span(epoch, span.first, kept)] if kept else []
            found.append(Span(epoch, span.first + kept, cut))
        return tuple(reversed(found))

    def close(self) -> None:
        """No batch is handed out from now on, and none asked for."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def close_soon(self) -> None:
        """As `close`, but nobody is woken: safe in a signal handler."""
        self._is_closed = True

    # --- the asking thread ---

    def _run(self) -> None:
        try:
            while (question := self._next_question()) is not None:
                ahead, epoch, pace = question
                self._store(self._ask(epoch, ahead, pace), epoch, ahead=ahead)
        except HubringError as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_question(self) -> tuple[bool, int, float] | None:
        with self._changed:
            while not (self._is_closed or self._needed or self._is_low()):
                self._changed.wait(self._seconds_to_wait())
            if self._is_closed:
                return None
            return not self._needed, self._epoch, self._pace.seconds

    def _seconds_to_wait(self) -> float | None:
        """Until the stock may be asked for again; None: only somebody else changes that."""
        rest = self._quiet_until - time.monotonic()
        return rest if rest > 0 else None

    def _is_low(self) -> bool:
        """More should be asked for ahead of need: a first time, at half of the last level, and
        while batches of this epoch or the next are with nobody.
        """
        if not self._pace.seconds or time.monotonic() < self._quiet_until:
            return False
        if self._whole_below <= self._epoch + 1:
            return True  # with the coordinator away it would have to stop at this epoch's end
        held = sum(span.count for span in self._spans)
        is_enough = held * self._pace.seconds >= ENOUGH
        return not is_enough and (self._is_fresh or held <= self._level // 2)

    def _store(self, taken: Taken, epoch: int, *, ahead: bool) -> None:
        with self._changed:
            self._spans = sorted([*self._spans, *taken.spans], key=lambda s: (s.epoch, s.first))
            self._level = sum(span.count for span in self._spans)
            self.hear(taken.whole_below)
            self._is_fresh = not ahead
            if ahead and (not taken.spans or taken.whole_below <= epoch + 1):
                pause = SOON if taken.state is TakeState.WAIT else QUIET
                self._quiet_until = time.monotonic() + pause
            if not ahead and taken.state is TakeState.OVER:
                self._over = epoch
            if not ahead and taken.spans:
                self._needed = False
            self._asked = time.monotonic()
            self._tell(taken.why)
            self._changed.notify_all()

    def _tell(self, why: str) -> None:
        if why and why != self._why:
            log.info("waiting: %s", why)
        self._why = why
