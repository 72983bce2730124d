"""Tells the coordinator which batches are done, beside the training: it is on no step's path.

What gathers while one call is under way goes with the next, as one call.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from hubring_common.errors import HubringError
from hubring_common.ids import BatchKey, Seq
from hubring_common.messages import Pushed, Span, spans_of


@dataclass(slots=True)
class News:
    """What there is to tell. `recall` names the recall that `returned` answers; 0: none."""

    done: list[Pushed] = field(default_factory=list)
    returned: list[Span] = field(default_factory=list)
    recall: int = 0

    def __bool__(self) -> bool:
        return bool(self.done or self.returned or self.recall)


Send = Callable[[News], None]
"""Tells the coordinator. Raises HubringError where it will not hear it."""


def pushed_as(keys: Iterable[BatchKey], seq: Seq, *, confessed: bool = False) -> list[Pushed]:
    """The batches that counted with one push."""
    spans = spans_of(sorted(keys))
    together = sum(span.count for span in spans) > 1
    return [Pushed(span, 0 if confessed else seq, together, confessed) for span in spans]


class Settler:
    """A daemon thread that sends what `put` gathers. `failed` hears the error that ends it."""

    def __init__(self, send: Send, failed: Callable[[HubringError], None]) -> None:
        self._send, self._failed = send, failed
        self._changed = threading.Condition()
        self._news = News()
        self._is_sending = self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)
        self._thread.start()

    def put(
        self, done: Iterable[Pushed] = (), returned: Iterable[Span] = (), recall: int = 0
    ) -> None:
        with self._changed:
            for pushed in done:
                _append(self._news.done, pushed)
            self._news.returned += returned
            self._news.recall = recall or self._news.recall
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
        return bool(self._news) or self._is_sending

    def _run(self) -> None:
        try:
            while (news := self._next()) is not None:
                self._send(news)
        except HubringError as error:
            self._failed(error)
            self.close()

    def _next(self) -> News | None:
        """What has gathered; None: closed."""
        with self._changed:
            self._is_sending = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or self._is_busy)
            if self._is_closed:
                return None
            news, self._news = self._news, News()
            self._is_sending = True
            return news


def _append(items: list[Pushed], new: Pushed) -> None:
    """Joined with the last one where it goes on from there."""
    if items and (joined := _joined(items[-1], new)) is not None:
        items[-1] = joined
    else:
        items.append(new)


def _joined(last: Pushed, new: Pushed) -> Pushed | None:
    a, b = last.span, new.span
    follows = (a.epoch, a.first + a.count) == (b.epoch, b.first)
    alone = not (last.together or new.together)
    same = last.confessed == new.confessed
    if follows and alone and same and (new.confessed or new.seq == last.seq + a.count):
        return replace(last, span=Span(a.epoch, a.first, a.count + b.count))
    return None
