"""The data tasks of a run within one process: the oracle that the loader's tests ask."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from hubring_common.errors import SettingsMismatch
from hubring_common.ids import BatchKey
from hubring_common.messages import Span


class TaskPool:
    """Grants spans of at most `span` batches; knows who holds which batch."""

    def __init__(self, span: int = 3) -> None:
        self.span = span
        self.settings: dict[str, str] = {}
        self.batches = 0
        self.is_draining = False
        self.leased: dict[BatchKey, str] = {}
        self.returned: deque[BatchKey] = deque()
        self.granted: dict[int, int] = {}  # of each epoch, batches granted so far
        self.done: list[BatchKey] = []

    def worker(self, name: str = "w0") -> "LocalTasks":
        return LocalTasks(self, name)

    def held_by(self, name: str) -> set[BatchKey]:
        return {key for key, holder in self.leased.items() if holder == name}

    def bury(self, name: str) -> None:
        """The worker died: what it held goes to others."""
        self.take_back(name, sorted(self.held_by(name)))

    def bind(self, settings: Mapping[str, str], batches: int) -> None:
        if not self.settings:
            self.settings, self.batches = dict(settings), batches
        for name, value in self.settings.items():
            if settings[name] != value:
                raise SettingsMismatch(f"{name} is {settings[name]} here, {value} in the run")
        assert batches == self.batches

    def grant(self, name: str, epoch: int) -> Span | None:
        span = None if self.is_draining else self._oldest_returned(epoch) or self._fresh(epoch)
        if span is not None:
            self.leased |= dict.fromkeys(span.keys(), name)
        return span

    def take_back(self, name: str, keys: Iterable[BatchKey]) -> None:
        for key in keys:
            assert self.leased.pop(key) == name, f"{name} gives back what it does not hold: {key}"
            self.returned.append(key)

    def finish(self, name: str, keys: Iterable[BatchKey]) -> None:
        """They were trained; those that the worker does not hold are nobody's matter."""
        mine = sorted(self.held_by(name) & set(keys))
        self.done += mine
        for key in mine:
            del self.leased[key]

    def _oldest_returned(self, epoch: int) -> Span | None:
        due = [key for key in self.returned if key.epoch <= epoch]
        if not due:
            return None
        self.returned.remove(min(due))
        return Span(*min(due), 1)

    def _fresh(self, epoch: int) -> Span | None:
        first = self.granted.get(epoch, 0)
        count = min(self.span, self.batches - first)
        self.granted[epoch] = first + count
        return Span(epoch, first, count) if count else None


class LocalTasks:
    """One worker's DataTasks."""

    def __init__(self, pool: TaskPool, name: str) -> None:
        self.pool, self.name = pool, name

    def declare(self, settings: Mapping[str, str], batches: int) -> None:
        self.pool.bind(settings, batches)

    def take(self, epoch: int) -> Span | None:
        return self.pool.grant(self.name, epoch)

    def give_back(self, spans: Sequence[Span]) -> None:
        assert spans, "an empty call costs a round trip"
        self.pool.take_back(self.name, chain.from_iterable(map(Span.keys, spans)))
