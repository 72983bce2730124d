"""Server-sent events for a bounded number of listeners. No listener waits for another.

A publication is a number and a change since the one before. A listener that missed one, or is
new, gets the whole instead; one that does not read is dropped by the ops port.
"""

import threading
from collections.abc import Callable, Iterator

from hubring_common.errors import Busy

LISTENERS = 32
"""Each holds a thread."""
IDLE = 5.0
"""Seconds after which a line that means nothing shows whether the listener is still there."""
LAST_WORDS = 1.0
"""Seconds that closing waits for listeners to have heard the end."""
RETRY_MS = 1000
"""After which a page tries again to reach a coordinator that went away."""


class Feed:
    """`whole` makes what a newcomer needs, as of publication `number`; called on its thread."""

    def __init__(self, whole: Callable[[], bytes], listeners: int = LISTENERS) -> None:
        self.whole = whole
        self._limit = listeners
        self._free = threading.BoundedSemaphore(listeners)
        self._changed = threading.Condition()
        self._number, self._change, self._is_closed = 0, b"", False
        self._count = 0

    @property
    def listeners(self) -> int:
        with self._changed:
            return self._count

    def publish(self, change: bytes) -> None:
        """`change` may be empty where nobody listened when it was made."""
        with self._changed:
            self._number += 1
            self._change = change
            self._changed.notify_all()

    def listen(self) -> "Listener":
        """Raises Busy where too many listen already. To be closed by whoever asked."""
        if not self._free.acquire(blocking=False):
            fact = f"{self._limit} pages are open already"
            raise Busy(fact, who="the coordinator", todo="close one, or use `hubring top`")
        with self._changed:
            self._count += 1
            return Listener(self)

    def close(self) -> None:
        """Every stream ends, once it has sent what was published; one that hangs is left alone."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._count == 0, LAST_WORDS)

    # --- for listeners ---

    def now(self) -> int:
        with self._changed:
            return self._number

    def after(self, seen: int) -> tuple[int, bytes] | None:
        """The next publication, or (seen, b"") if none comes for a while; None: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._number != seen or self._is_closed, IDLE)
            is_over = self._is_closed and self._number == seen
            return None if is_over else (self._number, self._change)

    def leave(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
        self._free.release()


class Listener:
    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __iter__(self) -> Iterator[bytes]:
        seen = self._feed.now()
        yield f"retry: {RETRY_MS}\n\n".encode() + self._feed.whole()
        while (found := self._feed.after(seen)) is not None:
            number, change = found
            if number == seen:
                yield b":\n\n"
            else:
                yield change if change and number == seen + 1 else self._feed.whole()
            seen = number

    def close(self) -> None:
        self._feed.leave()
