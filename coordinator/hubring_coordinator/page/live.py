"""Looks at the run once a second, remembers, and feeds whoever watches.

A thread of its own, so that no listener and no file is on the coordinator's path. What it
publishes is made only while somebody listens.
"""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubring_common.errors import HubringError
from hubring_common.messages import Status
from hubring_common.ops import Answer, Page, as_json
from hubring_common.timing import Timing
from hubring_coordinator import summary
from hubring_coordinator.page import assets
from hubring_coordinator.page.feed import Feed
from hubring_coordinator.page.history import History, sample
from hubring_coordinator.page.record import Record
from hubring_coordinator.page.view import view, whole

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two looks at the run."""


class Live:
    """`ask` gets the status. `state_dir`: where the history outlives this process; "": nowhere.
    `looked` hears each status.
    """

    def __init__(
        self,
        ask: Callable[[], Status],
        timing: Timing,
        run: str,
        state_dir: str,
        looked: Callable[[Status], None] = lambda _status: None,
    ) -> None:
        self._ask, self._timing, self._looked = ask, timing, looked
        self._history = History()
        self._record = Record(Path(state_dir), run) if state_dir else None
        self._lock = threading.Lock()  # over the history, which requests read too
        self._status: Status | None = None
        self._feed = Feed(self._everything)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)

    def start(self) -> None:
        if self._record is not None:
            self._record.load(self._history)
        self._thread.start()

    def close(self) -> None:
        """End the thread and every stream."""
        self._stop()
        self._feed.close()

    def latest(self) -> Status | None:
        """The status of the last look; None before the first."""
        return self._status

    def finish(self, status: Status) -> str:
        """The last look: tell everyone how the run ended. Returns its page in one file."""
        self._stop()
        with self._lock:
            self._history.add(sample(status))
            self._status = status
            change = self._event(0)
            shown = {**view(status, self._history, self._timing), "history": self._past()}
        self._looked(status)
        self._feed.publish(change)
        return assets.saved_page(shown)

    # --- the ops port's pages ---

    def pages(self) -> dict[str, Page]:
        files = {f"/{name}": _file(name, "text/javascript") for name in assets.SCRIPTS}
        found: dict[str, Page] = {
            "/": lambda: Answer(
                assets.live_page().encode(), "text/html; charset=utf-8", headers=_guarded()
            ),
            "/page.css": _file("page.css", "text/css"),
            "/status.json": self._status_json,
            "/events": self._events,
            **files,
        }
        if (script := assets.plotly()) is not None:
            found["/plotly.js"] = lambda: Answer(
                script.read_bytes(),
                _typed("text/javascript"),
                headers={"Cache-Control": "max-age=3600"},
            )
        return found

    def _status_json(self) -> Answer:
        status = self._ask()
        with self._lock:
            shown = view(status, self._history, self._timing)
            return as_json(whole(summary.as_json(status), shown, self._history))

    def _events(self) -> Answer:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Answer(self._feed.listen(), "text/event-stream", headers=headers)

    # --- the thread ---

    def _stop(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._look()
            except HubringError as error:
                log.debug("no look at the run: %s", error)
            self._closed.wait(EVERY)

    def _look(self) -> None:
        status = self._ask()
        with self._lock:
            count, stride = len(self._history.points), self._history.stride
            self._history.add(sample(status))
            since = count if stride == self._history.stride else 0
            self._status = status
            change = self._event(since) if self._feed.listeners else b""
        if self._record is not None:
            self._record.save(self._history)
        self._feed.publish(change)
        self._looked(status)

    def _everything(self) -> bytes:
        status = self._ask() if self._status is None else self._status
        with self._lock:
            self._status = self._status or status
            return self._event(0)

    def _event(self, since: int) -> bytes:
        """One event: the view, and the history's points from `since` on."""
        assert self._status is not None
        shown = view(self._status, self._history, self._timing)
        data = json.dumps({**shown, "history": self._past(since)}, allow_nan=False)
        return f"data: {data}\n\n".encode()

    def _past(self, since: int = 0) -> dict[str, Any]:
        return self._history.as_json(since)


def _file(name: str, kind: str) -> Page:
    return lambda: Answer(assets.text(name).encode(), _typed(kind), headers=assets.HEADERS)


def _typed(kind: str) -> str:
    return f"{kind}; charset=utf-8"


def _guarded() -> dict[str, str]:
    guard = assets.policy("'self'", "'self'") + "; frame-ancestors 'none'"
    return {**assets.HEADERS, "Content-Security-Policy": guard}
