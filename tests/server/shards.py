"""A shard's machine with a log that answers when the test says so."""

from itertools import count

from hubring_common.ids import BatchKey, PushId
from hubring_server.machine.messages import (
    Ack,
    Apply,
    Free,
    Members,
    Push,
    PushRecord,
    Refuse,
    Seed,
    Store,
    Stored,
)
from hubring_server.machine.mode import ASYNC
from hubring_server.machine.shard import Shard, payloads

SEED = 70  # the digest of the first weights


class Rig:
    """Sends events, performs Store late or at once, and keeps what else came out."""

    def __init__(
        self, *sessions: int, is_late: bool = False, seed: bool = True, mode=ASYNC, still=False
    ):
        self.shard = Shard(mode, has_still=still)
        self.is_late = False
        self.handles = count(1)
        self.lent: set[int] = set()
        self.logged: list = []
        self.applied: list = []
        self.view = 0
        self.members(*sessions)
        if seed:
            self.seed(min(sessions))
        self.is_late = is_late

    def do(self, event) -> list:
        """The answers that came out; every effect is performed in order."""
        answers, events = [], [event]
        while events:
            for effect in self.shard.handle(events.pop(0)):
                match effect:
                    case Store(record):
                        self.logged.append(record)
                        if not self.is_late:
                            events.append(Stored(record.lsn))
                    case Apply(record):
                        assert record.lsn <= self.shard.stored, "applied before it was stored"
                        assert self.lent.issuperset(payloads(record)), "freed before it was applied"
                        self.applied.append(record)
                    case Free(handle):
                        self.lent.remove(handle)
                    case _:
                        answers.append(effect)
        self.shard.check(self.lent)
        return answers

    def lend(self) -> int:
        handle = next(self.handles)
        self.lent.add(handle)
        return handle

    def members(self, *sessions: int) -> list:
        self.view += 1
        return self.do(Members(self.view, frozenset(sessions)))

    def seed(self, session: int, digest: int = SEED, *, still: bool = False) -> list:
        return self.do(Seed(session, digest, self.lend(), still))

    def push(self, session: int, seq: int, *batches: int, first=None, digest=7, epoch=0) -> list:
        first = seq if first is None else first
        keys = frozenset(BatchKey(epoch, batch) for batch in batches)
        return self.do(Push(PushId(session, seq), first, keys, digest, self.lend()))

    def stored(self, lsn: int | None = None) -> list:
        """The log says that it has the records up to `lsn`, or all."""
        return self.do(Stored(self.shard.logged if lsn is None else lsn))

    @property
    def pushes(self) -> list[PushId]:
        """What was applied, in order."""
        return [push.id for push in pushes_in(self.applied)]


def pushes_in(records) -> list[Push]:
    found = (record for record in records if isinstance(record, PushRecord))
    return [push for record in found for push in record.pushes]


def why(answers) -> object:
    """Why the one answer refused."""
    (answer,) = answers
    assert isinstance(answer, Refuse), answer
    return answer.why


def lsn(answers) -> int:
    """The record of the one acknowledgement."""
    (answer,) = answers
    assert isinstance(answer, Ack), answer
    return answer.lsn
