"""The thread around the machine: its mailbox, its store, its clock, and who waits for answers.

A batch of events is handled, its rows are committed in one transaction, and only then does
anything leave this process that depends on them. A store that fails ends the coordinator: what
it cannot remember it must not say.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from hubring_common import messages as m
from hubring_common.clock import Clock
from hubring_common.errors import HubringError, TimedOut, Unreachable
from hubring_common.timing import Timing
from hubring_coordinator.machine import events
from hubring_coordinator.machine.coordinator import Coordinator
from hubring_coordinator.machine.events import Effect, Event, Put
from hubring_coordinator.store import Store

log = logging.getLogger(__name__)

BATCH = 1000
"""Events that share one transaction, at most."""
_FIELDS: Mapping[type, str] = {
    m.Welcome: "welcome",
    m.Install: "install",
    m.Members: "members",
    m.Formed: "formed",
    m.Quiet: "quiet",
    m.Drain: "drain",
    m.End: "end",
    m.DumpStacks: "dump_stacks",
    m.Recall: "recall",
}


@dataclass(frozen=True, slots=True)
class Outbox:
    """What goes down one stream: messages, an error that ends it, or None that ends it."""

    stream: events.Stream
    queue: SimpleQueue[m.ToMember | HubringError | None]

    def drain(self, patience: float, is_active: Callable[[], bool]) -> Iterator[m.ToMember]:
        """Every message until the stream ends. Raises the error that ended it."""
        while is_active():
            try:
                item = self.queue.get(timeout=patience)
            except Empty:
                continue
            if item is None:
                return
            if isinstance(item, HubringError):
                raise item
            yield item


class Shell:
    """`on_over` hears, on the machine's thread, how the run ended; `on_exit`, once, that every
    member is gone, with the last status, or None: the machine failed and `failure` has the reason.
    """

    def __init__(
        self,
        machine: Coordinator,
        store: Store,
        clock: Clock,
        timing: Timing,
        *,
        on_over: Callable[[m.Status], None],
        on_exit: Callable[[m.Status | None], None],
    ) -> None:
        self._machine, self._store, self._clock, self.timing = machine, store, clock, timing
        self._on_over, self._on_exit = on_over, on_exit
        self._mail: SimpleQueue[Event | None] = SimpleQueue()
        self._numbers = itertools.count(1)
        self._calls: dict[events.Call, Future[Any]] = {}
        self._outboxes: dict[events.Stream, Outbox] = {}
        self._next_tick = clock.now()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, every stream and every call."""
        self._mail.put(None)
        self._thread.join()

    # --- from any thread ---

    def post(self, event: Event) -> None:
        self._mail.put(event)

    def tell(self, request: events.Request) -> None:
        """A call whose answer nobody waits for."""
        self.post(events.Called(next(self._numbers), request))

    def call(self, request: events.Request) -> Any:
        """The machine's answer. Raises the error that it is, or TimedOut."""
        call, future = next(self._numbers), Future[Any]()
        self._calls[call] = future
        self.post(events.Called(call, request))
        if not self._thread.is_alive():
            self._hang_up()  # it may have ended before it saw the call
        try:
            return future.result(self.timing.call())
        except TimeoutError:
            fact = f"no answer to {type(request).__name__} for {self.timing.call():.1f} s"
            raise TimedOut(fact, who="the coordinator", todo="ask again") from None
        finally:
            self._calls.pop(call, None)

    def open_stream(self) -> Outbox:
        outbox = Outbox(next(self._numbers), SimpleQueue())
        self._outboxes[outbox.stream] = outbox
        return outbox

    def close_stream(self, outbox: Outbox) -> None:
        self._outboxes.pop(outbox.stream, None)
        self.post(events.Detached(outbox.stream))

    # --- the machine's thread ---

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - whoever started the shell raises it
            self.failure = error
            self._on_exit(None)
        self._hang_up()

    def _turn(self) -> bool:
        """One batch: handle, commit, perform. False: closed."""
        batch = self._next_batch()
        effects: list[Effect] = []
        for event in batch:
            if event is not None:
                effects += self._machine.handle(event, self._clock.now())
        rows = {(e.kind, e.key): e for e in effects if isinstance(e, Put)}
        if rows:
            self._store.commit(tuple(rows.values()))
        for effect in effects:
            self._perform(effect)
        return None not in batch

    def _next_batch(self) -> list[Event | None]:
        batch: list[Event | None] = []
        try:
            batch.append(self._mail.get(timeout=max(0.0, self._next_tick - self._clock.now())))
            while len(batch) < BATCH:
                batch.append(self._mail.get_nowait())
        except Empty:
            pass
        if self._clock.now() >= self._next_tick:
            self._next_tick = self._clock.now() + self.timing.heartbeat / 2
            batch.append(events.Tick())
        return batch

    def _perform(self, effect: Effect) -> None:
        match effect:
            case events.Send(stream, order):
                self._send(stream, _to_member(order))
            case events.Close(stream, error):
                self._send(stream, error)
            case events.Answer(call, result):
                self._answer(call, result)
            case events.Note(text):
                log.info(text)
            case events.Over(status):
                self._on_over(status)
            case events.Exit(status):
                self._on_exit(status)

    def _send(self, stream: events.Stream, item: m.ToMember | HubringError) -> None:
        if (outbox := self._outboxes.get(stream)) is not None:
            outbox.queue.put(item)

    def _answer(self, call: events.Call, result: Any) -> None:
        """A caller that gave up meanwhile has taken its future away."""
        if (future := self._calls.pop(call, None)) is None:
            return
        if isinstance(result, HubringError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def _hang_up(self) -> None:
        """Nobody waits for a thread that has ended."""
        gone = Unreachable("the coordinator is closing", who="the coordinator")
        for call in tuple(self._calls):
            self._answer(call, gone)
        for outbox in tuple(self._outboxes.values()):
            outbox.queue.put(None)


def _to_member(order: events.Order) -> m.ToMember:
    fields: dict[str, Any] = {_FIELDS[type(order)]: order}
    return m.ToMember(**fields)
