"""A member's life line to the coordinator: hello, heartbeats up, orders down, re-attaching.

Threads: one that reads (it calls `orders`, which must not block for long), gRPC's own that
writes, and for a moment one that writes down the stacks when the coordinator asks. A broken
stream is opened again with the same session until patience runs out.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from hubring_common import rpc, stacks, wire
from hubring_common.clock import MonotonicClock
from hubring_common.errors import HubringError, RunEnded, TimedOut, Unreachable
from hubring_common.messages import (
    Acked,
    FromMember,
    Heartbeat,
    Hello,
    StacksDump,
    ToMember,
    Welcome,
)
from hubring_common.timing import Timing

log = logging.getLogger(__name__)

ATTEND = "/hubring.v1.Coordinator/Attend"
PATIENCE = 18
"""Leases that a member goes on trying to reach a coordinator which it knew."""


class Attendance:
    """One member's stream. `lost` hears, once, of an error that ended it for good.

    `timing` holds until the coordinator's Welcome brings its own.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        token: str,
        timing: Timing,
        *,
        beat: Callable[[], Heartbeat],
        orders: Callable[[ToMember], None],
        lost: Callable[[HubringError], None],
    ) -> None:
        self._open: Any = channel.stream_stream(ATTEND)
        self._metadata = rpc.metadata(token)
        self._beat, self._orders, self._lost = beat, orders, lost
        self._clock = MonotonicClock()
        self._timing = timing
        self._patience = timing.timeout
        self._heard = self._clock.now()
        self._closed = threading.Event()
        self._is_attached = False
        self._is_over = False  # the run: nothing is worth attending any more
        self._welcome: Welcome | None = None
        self._answer: SimpleQueue[Welcome | HubringError] = SimpleQueue()
        self._outgoing: SimpleQueue[FromMember | None] = SimpleQueue()
        self._call: Any = None
        self._thread = threading.Thread(name="attend", daemon=True)

    def start(self, hello: Hello) -> Welcome:
        """Join. Raises what the coordinator refuses with, Unreachable, or TimedOut."""
        self._thread = threading.Thread(target=self._run, args=(hello,), name="attend", daemon=True)
        self._thread.start()
        deadline = self._timing.call()
        try:
            answer = self._answer.get(timeout=deadline)
        except Empty:
            fact = f"the coordinator did not welcome this member within {deadline:.0f} s"
            answer = TimedOut(fact, todo="look at the coordinator's log")
        if isinstance(answer, HubringError):
            self.close()
            raise answer
        return answer

    @property
    def welcome(self) -> Welcome:
        """The coordinator's last one. Raises RuntimeError before the first."""
        if self._welcome is None:
            raise RuntimeError("not welcomed yet")
        return self._welcome

    @property
    def is_away(self) -> bool:
        """The coordinator cannot be heard now."""
        return not self._is_attached

    def ack(self, order: int) -> None:
        """An order lost with a stream is sent again on the next, so this may be lost too."""
        self._outgoing.put(FromMember(acked=Acked(order)))

    def close(self) -> None:
        """A last heartbeat, then the end of the stream; nothing is reported any more."""
        self._closed.set()
        self._beat_now()
        self._outgoing.put(None)
        if self._thread is threading.current_thread():
            return
        if self._thread.is_alive():
            self._thread.join(timeout=2 * self._timing.heartbeat)
        if self._thread.is_alive() and self._call is not None:
            self._call.cancel()  # the coordinator does not answer
            self._thread.join(timeout=self._timing.timeout)

    def _beat_now(self) -> None:
        self._outgoing.put(FromMember(heartbeat=self._beat()))

    # --- the reading thread ---

    def _run(self, hello: Hello) -> None:
        failure = self._attend(hello)
        tries = 0
        while self._may_try_again(failure):
            tries += 1
            if tries.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...
                log.warning("the coordinator is away (try %d): %s", tries, failure.fact)
            if self._closed.wait(self._timing.heartbeat):
                return
            session = self._welcome.session if self._welcome else hello.session
            failure = self._attend(replace(hello, session=session))
        if self._closed.is_set() or self._is_over:
            return
        if self._welcome is None:
            self._answer.put(failure)
        else:
            self._lost(failure)

    def _may_try_again(self, failure: HubringError) -> bool:
        silent = self._clock.now() - self._heard
        away = isinstance(failure, Unreachable)
        is_done = self._closed.is_set() or self._is_over
        return away and not is_done and silent < self._patience

    def _attend(self, hello: Hello) -> HubringError:
        """One stream, from its hello to the error that ended it."""
        self._outgoing = SimpleQueue()
        messages = self._messages(hello, self._outgoing)
        self._call = self._open(messages, metadata=self._metadata)
        if self._closed.is_set():  # `close` may have seen the stream before
            self._call.cancel()
        try:
            with rpc.calling("the coordinator"):
                for data in self._call:
                    self._is_attached = True
                    self._take(wire.decode(ToMember, data))
        except HubringError as error:
            return error
        except Exception as error:  # else a member that no longer listens would go on beating
            log.exception("an order failed")
            return RunEnded(f"an order failed here: {error!r}")
        finally:
            self._call.cancel()
            if self._is_attached:  # until now, however long it had nothing to say
                self._heard = self._clock.now()
            self._is_attached = False
        return Unreachable("the stream was closed", who="the coordinator")

    def _take(self, message: ToMember) -> None:
        self._is_over = self._is_over or message.end is not None
        if message.dump_stacks is not None:
            self._dump_stacks(message.dump_stacks.request)
        elif message.welcome is not None:
            self._welcomed(message.welcome)
        else:
            self._orders(message)

    def _dump_stacks(self, request: int) -> None:
        """In a thread of its own: it reads source files, which may lie far away."""

        def dump() -> None:
            text = stacks.dump()
            self._outgoing.put(FromMember(stacks=StacksDump(request, text)))

        threading.Thread(target=dump, name="stacks", daemon=True).start()

    def _welcomed(self, welcome: Welcome) -> None:
        first, self._welcome = self._welcome is None, welcome
        self._timing = Timing(welcome.timeout)
        self._patience = PATIENCE * self._timing.lease
        self._beat_now()  # the writer waits by the new timing from here on
        if first:
            self._answer.put(welcome)

    # --- gRPC's writing thread ---

    def _messages(self, hello: Hello, outgoing: SimpleQueue[FromMember | None]) -> Iterator[bytes]:
        yield wire.encode(FromMember(hello=hello))
        while outgoing is self._outgoing:
            try:
                message = outgoing.get(timeout=self._timing.heartbeat)
            except Empty:
                message = FromMember(heartbeat=self._beat())
            if message is None:
                return
            yield wire.encode(message)
