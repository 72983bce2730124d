"""One shard's machine: which record comes next, and who may hear of it.

A payload is a Handle into the shell's arena: a Push or a Seed lends it, exactly one Free gives
it back. What could make Apply fail (size, digest, NaN, unknown hyperparameters) the shell checks
before the machine hears of it, so Apply never refuses. The shell performs effects in list order.
Rules P1-P7 are those of docs/protocols.md.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from hubring_common.ids import Digest, Lsn, Session
from hubring_server.machine.messages import (
    Ack,
    Apply,
    Effect,
    Event,
    Free,
    Handle,
    Members,
    MembersAck,
    MembersRecord,
    Push,
    PushRecord,
    Record,
    Refuse,
    Seed,
    SeedAck,
    SeedRecord,
    SeedRefuse,
    Store,
    Stored,
    Why,
)
from hubring_server.machine.mode import Mode
from hubring_server.machine.window import Applied, DoneBatches, Window


class Shard:
    def __init__(self, mode: Mode, *, has_still: bool = False) -> None:
        """`has_still`: the shard keeps some of the model's still tensors."""
        self.mode, self.has_still = mode, has_still
        self.view = 0
        self.sessions: frozenset[Session] = frozenset()
        self.seed_digest: Digest | None = None
        self.still_digest: Digest | None = None
        self.seeded_by: Session = 0  # who brought the weights
        # In the weights <= on every sink <= in the log.
        self.applied = self.stored = self.logged = 0
        self.waiting: dict[Session, Push] = {}
        self.log: dict[Lsn, Record] = {}  # logged, not yet applied
        self.windows: dict[Session, Window] = {}
        self.done = DoneBatches()
        self.owed: defaultdict[Lsn, list[Effect]] = defaultdict(list)  # due once it is stored
        self.pushes_logged = self.keys_logged = 0

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case Members():
                return self._admit_members(event)
            case Seed():
                return self._admit_seed(event)
            case Push():
                return self._admit(event)
            case Stored(lsn):  # by every sink, in LSN order
                return self._commit(lsn)

    # --- members and first weights ---

    def _admit_members(self, members: Members) -> list[Effect]:
        """P5: sessions come and go by a logged record alone; a push never creates one."""
        if members.view <= self.view:
            return self._when_stored(self.logged, MembersAck(members.view))
        self.view, self.sessions = members.view, members.sessions
        self.windows = {s: self.windows.get(s, Window()) for s in members.sessions}
        gone = [s for s in self.waiting if s not in members.sessions]
        turned = [e for s in gone for e in self._turn_away(self.waiting.pop(s), Why.FENCED)]
        record = MembersRecord(self.logged + 1, members)
        return [*turned, *self._log(record, MembersAck(members.view)), *self._append()]

    def _admit_seed(self, seed: Seed) -> list[Effect]:
        free = Free(seed.payload)
        if why := self._why_not_seed(seed):
            return [free, SeedRefuse(seed.session, seed.digest, why, seed.still)]
        answer = SeedAck(seed.session, seed.digest, seed.still)
        if seed.digest == (self.still_digest if seed.still else self.seed_digest):
            return [free, *self._when_stored(self.logged, answer)]
        if seed.still:
            self.still_digest = seed.digest
        else:
            self.seed_digest, self.seeded_by = seed.digest, seed.session
        return self._log(SeedRecord(self.logged + 1, seed), answer)

    def _why_not_seed(self, seed: Seed) -> Why | None:
        """The next chief may seed again what a dead one left half done, until the first push.
        Still tensors come first, so that weights are there only where both are.
        """
        if seed.session not in self.sessions:
            return Why.FENCED
        if seed.session != min(self.sessions):
            return Why.NOT_CHIEF
        if seed.still:
            is_late = self.pushes_logged or self.seeded_by == seed.session
            return Why.SEEDED if is_late and self.still_digest != seed.digest else None
        if self.has_still and self.still_digest is None:
            return Why.STILL_DUE
        other = self.seed_digest not in {None, seed.digest}
        return Why.SEEDED if other and self.pushes_logged else None

    # --- pushes ---

    def _admit(self, push: Push) -> list[Effect]:
        session, seq = push.id.session, push.id.seq
        if session not in self.sessions:  # P5
            return self._turn_away(push, Why.FENCED)
        window = self.windows[session]
        if seen := window.applied.get(seq):
            return self._answer_again(push, seen)
        if why := window.judge(seq, push.first_incomplete) or self._why_not(push):
            return self._turn_away(push, why)
        if again := self.done.among(push.batches):  # P6
            return self._refuse_done(push, again)
        if session in self.waiting:
            same = self.waiting[session] == _with_payload(push, self.waiting[session].grad)
            # A resend of what waits: the first copy's answer serves both.
            return [Free(push.grad)] if same else self._turn_away(push, Why.DIGEST)
        self.waiting[session] = push
        return self._append()

    def _why_not(self, push: Push) -> Why | None:
        if self.seed_digest is None:
            return Why.UNSEEDED
        return None if push.batches else Why.NO_KEYS

    def _turn_away(self, push: Push, why: Why) -> list[Effect]:
        return [Free(push.grad), Refuse(push.id, why)]

    def _answer_again(self, push: Push, seen: Applied) -> list[Effect]:
        if seen.digest != push.digest:
            return self._turn_away(push, Why.DIGEST)
        return [Free(push.grad), *self._when_stored(seen.lsn, Ack(push.id, seen.lsn, again=True))]

    def _refuse_done(self, push: Push, keys: frozenset[Any]) -> list[Effect]:
        refusal = Refuse(push.id, Why.BATCH_DONE, keys)
        return [Free(push.grad), *self._when_stored(self.done.latest_unstored(keys), refusal)]

    def _when_stored(self, lsn: Lsn, answer: Effect) -> list[Effect]:
        """P4: nothing is confessed before its first copy is on every sink."""
        if lsn <= self.stored:
            return [answer]
        self.owed[lsn].append(answer)
        return []

    # --- the log ---

    def _append(self) -> list[Effect]:
        effects: list[Effect] = []
        while pushes := self.mode.choose(self.waiting, self.sessions):
            record = PushRecord(self.logged + 1, pushes)
            for push in pushes:
                del self.waiting[push.id.session]
                self._remember(push, record.lsn)
            effects += self._log(record, *(Ack(push.id, record.lsn) for push in pushes))
        return effects

    def _remember(self, push: Push, lsn: Lsn) -> None:
        window = self.windows[push.id.session]
        window.log(push.id.seq, push.first_incomplete, Applied(lsn, push.digest))
        for key in push.batches:
            self.done.add(key, lsn)
        self.pushes_logged += 1
        self.keys_logged += len(push.batches)

    def _log(self, record: Record, *answers: Effect) -> list[Effect]:
        self.logged = record.lsn
        self.log[record.lsn] = record
        self.owed[record.lsn] += answers
        return [Store(record)]

    def _commit(self, lsn: Lsn) -> list[Effect]:
        effects: list[Effect] = []
        self.stored = max(self.stored, lsn)
        while self.applied < self.stored:
            self.applied += 1
            record = self.log.pop(self.applied)
            effects += [Apply(record), *(Free(h) for h in payloads(record))]
            effects += self.owed.pop(self.applied, [])
        self.done.stored(self.stored)
        return effects

    # --- state as plain data (P7: sessions and done batches travel with the weights) ---

    def snapshot(self) -> dict[str, Any]:
        """The state after the last applied record. Raises RuntimeError while one is in flight."""
        if self.applied != self.logged or self.waiting:
            raise RuntimeError("a record is in flight")
        windows = {s: (w.mark, dict(w.applied), w.logged) for s, w in self.windows.items()}
        return {
            "lsn": self.applied,
            "view": self.view,
            "sessions": sorted(self.sessions),
            "seed": (self.seed_digest, self.still_digest, self.seeded_by),
            "windows": windows,
            "done": self.done.snapshot(),
            "counts": (self.pushes_logged, self.keys_logged),
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        self.applied = self.stored = self.logged = data["lsn"]
        self.view, self.sessions = data["view"], frozenset(data["sessions"])
        self.seed_digest, self.still_digest, self.seeded_by = data["seed"]
        self.windows = {
            session: Window(mark, {seq: Applied(*a) for seq, a in applied.items()}, logged)
            for session, (mark, applied, logged) in data["windows"].items()
        }
        self.done.restore(data["done"])
        self.pushes_logged, self.keys_logged = data["counts"]

    def check(self, lent: Collection[Handle]) -> None:
        """The invariants I1, I2, I4 and I9, and that no payload handle leaks."""
        assert self.applied <= self.stored <= self.logged, "I2: applied, stored, logged"
        assert all(lsn > self.stored for lsn in self.owed), "I1: an answer is overdue"
        assert set(self.log) == set(range(self.applied + 1, self.logged + 1)), "I2: a hole"
        assert self.windows.keys() == self.sessions, "P5: windows are the members'"
        assert all(w.ids == w.logged for w in self.windows.values()), "I4: an id logged twice"
        assert self.done.count() == self.keys_logged, "I9: a batch was logged twice"
        held = [p.grad for p in self.waiting.values()]
        held += [h for record in self.log.values() for h in payloads(record)]
        assert sorted(held) == sorted(lent), "a payload leaked or was freed twice"


def payloads(record: Record) -> tuple[Handle, ...]:
    """The handles that a record holds until it is applied."""
    match record:
        case PushRecord(_, pushes):
            return tuple(push.grad for push in pushes)
        case SeedRecord(_, seed):
            return (seed.payload,)
        case MembersRecord():
            return ()


def _with_payload(push: Push, grad: Handle) -> Push:
    return Push(push.id, push.first_incomplete, push.batches, push.digest, grad)
