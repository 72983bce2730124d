"""The shard's log: where a record must be before anyone hears of it.

`MemoryLog` is the first sink: it answers at once and survives nothing. A log on disk and a
backup are sinks of the same shape.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from hubring_common.ids import Lsn
from hubring_server.arena import Payload
from hubring_server.machine.messages import Handle, Record


@dataclass(frozen=True, slots=True)
class Entry:
    """A record with what it carries, so that it can be applied again."""

    record: Record
    payloads: Mapping[Handle, Payload]


class Log(Protocol):
    def store(self, entry: Entry, stored: Callable[[Lsn], None]) -> None:
        """Keep `entry`; call `stored` with its LSN, in LSN order, once it is safe.

        The payloads may be read until `stored` is called, not after.
        """
        ...


class MemoryLog:
    """Answers at once. Keeps copies of the last `keep` entries (None: of all) for a replay."""

    def __init__(self, keep: int | None = 0) -> None:
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._keeps = keep != 0

    def store(self, entry: Entry, stored: Callable[[Lsn], None]) -> None:
        if self._keeps:
            copies = {handle: payload.copy() for handle, payload in entry.payloads.items()}
            self._entries.append(Entry(entry.record, copies))
        stored(entry.record.lsn)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)
