"""Data tasks: who takes which batches, what became of them, and the ledger of it all."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from hubring_common.ids import BatchKey, Seq, Session


@dataclass(frozen=True, slots=True)
class Span:
    """`count` batches of an epoch from `first` on."""

    epoch: int
    first: int
    count: int

    def keys(self) -> list[BatchKey]:
        return [BatchKey(self.epoch, self.first + i) for i in range(self.count)]


def spans_of(keys: Iterable[BatchKey]) -> tuple[Span, ...]:
    """The keys as spans, neighbours joined; in the order given."""
    spans: list[Span] = []
    for key in keys:
        last = spans[-1] if spans else None
        if last is not None and key == (last.epoch, last.first + last.count):
            spans[-1] = Span(last.epoch, last.first, last.count + 1)
        else:
            spans.append(Span(key.epoch, key.batch, 1))
    return tuple(spans)


@dataclass(frozen=True, slots=True)
class Take:
    """Ask for tasks of `epoch` (or of an earlier one, if a worker died with it).

    After a lost answer the same `seq` is sent again, and gets the same tasks. `ahead`: they are
    not needed yet, so the answer comes at once, perhaps with tasks of later epochs.
    """

    session: Session
    epoch: int
    seq: Seq
    batch_seconds: float = 0.0
    ahead: bool = False


class TakeState(Enum):
    TASK = 1
    OVER = 2
    """No task is left of this epoch."""
    WAIT = 3
    """Ask again: a silent worker holds the rest."""


@dataclass(frozen=True, slots=True)
class Taken:
    state: TakeState
    spans: tuple[Span, ...] = ()
    why: str = ""
    workers: int = 1
    whole_below: int = 0
    """As in Done, from the asked epoch on."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """Batches that counted with pushes `seq`, `seq` + 1, ... one each, or all with push `seq`.

    `confessed`: the shards had them already, by a push of an earlier holder.
    """

    span: Span
    seq: Seq = 0
    together: bool = False
    confessed: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """Batches that every shard acknowledged, and batches given back untrained."""

    session: Session
    done: tuple[Pushed, ...] = ()
    returned: tuple[Span, ...] = ()
    recall: int = 0
    """That this answers; 0: none."""


@dataclass(frozen=True, slots=True)
class LedgerRequest:
    epoch: int


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """Batches [first, first + count) of an epoch, trained by one worker in a row.

    `taken` and `done` in seconds into the run: of the first batch, and of the last.
    """

    first: int
    count: int
    worker: str
    session: Session
    seq: Seq = 0
    together: bool = False
    confessed: bool = False
    taken: float = 0.0
    done: float = 0.0


@dataclass(frozen=True, slots=True)
class SetAside:
    """A batch that was with several workers when they died, and is left out."""

    epoch: int
    batch: int
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ledger:
    epoch: int
    batches: int
    entries: tuple[LedgerEntry, ...] = ()
    missing: tuple[Span, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
