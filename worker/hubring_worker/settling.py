"""Tells the coordinator which batches are done, beside the training: it is on no step's path.

What gathers while one call is under way goes with the next, as one call.
"""

import threading
from collections.abc import Callable, Iterable

from hubring_common.errors import HubringError
from hubring_common.ids import BatchKey

Send = Callable[[set[BatchKey], set[BatchKey]], None]
"""Tells the coordinator (done, returned). Raises HubringError where it will not hear it."""


class Settler:
    """A daemon thread that sends what `put` gathers. `failed` hears the error that ends it."""

    def __init__(self, send: Send, failed: Callable[[HubringError], None]) -> None:
        self._send, self._failed = send, failed
        self._changed = threading.Condition()
        self._done: set[BatchKey] = set()
        self._returned: set[BatchKey] = set()
        self._is_sending = self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)
        self._thread.start()

    def put(self, done: Iterable[BatchKey], returned: Iterable[BatchKey]) -> None:
        with self._changed:
            self._done.update(done)
            self._returned.update(returned)
            self._changed.notify_all()

    def flush(self) -> None:
        """Returns when everything has been heard, or the thread has ended by an error."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._is_busy)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def _is_busy(self) -> bool:
        return bool(self._done or self._returned or self._is_sending)

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._send(*batch)
        except HubringError as error:
            self._failed(error)
            self.close()

    def _next(self) -> tuple[set[BatchKey], set[BatchKey]] | None:
        """What has gathered; None: closed."""
        with self._changed:
            self._is_sending = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or self._is_busy)
            if self._is_closed:
                return None
            batch = self._done, self._returned
            self._done, self._returned = set(), set()
            self._is_sending = True
            return batch
