"""The shard's machine under random traffic, beside an oracle that works each answer out anew
from everything that was ever logged.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from server.shards import Rig, lsn, pushes_in

from hubring_common.ids import BatchKey, PushId
from hubring_server.machine.messages import (
    Ack,
    Members,
    MembersAck,
    Push,
    PushRecord,
    Refuse,
    Seed,
    SeedAck,
    SeedRecord,
    SeedRefuse,
    Why,
)
from hubring_server.machine.mode import ASYNC
from hubring_server.machine.shard import Shard
from hubring_server.machine.window import WINDOW

SESSIONS = range(1, 6)
NEXT = 1000  # batches that no random push names


class Oracle:
    """Judges by the log alone: (the record that must be stored first, the answer)."""

    def __init__(self):
        self.members = Members(0, frozenset())
        self.log: list = []  # of each record: what asked for it

    def answer(self, event) -> tuple[int, object]:
        match event:
            case Push():
                return self.answer_push(event)
            case Seed(session, digest, _, still):
                return self.answer_seed(event, SeedAck(session, digest, still))
            case Members(view):
                if view > self.members.view:
                    self.members = event
                    self.log.append(event)
                return len(self.log), MembersAck(view)

    def answer_seed(self, seed, ack):
        def refused(why):
            return 0, SeedRefuse(seed.session, seed.digest, why, seed.still)

        if seed.session not in self.members.sessions:
            return refused(Why.FENCED)
        if seed.session > min(self.members.sessions):
            return refused(Why.NOT_CHIEF)
        if not seed.still and not self.seeds(still=True):
            return refused(Why.STILL_DUE)
        if [event.digest for event in self.seeds(seed.still)[-1:]] != [seed.digest]:
            brought = [event.session for event in self.seeds(still=False)[-1:]]
            if self.pushes() or (seed.still and brought == [seed.session]):
                return refused(Why.SEEDED)
            self.log.append(seed)
        return len(self.log), ack

    def answer_push(self, push):
        at, again = self.known(push)
        if again is not None:
            return at, again
        if why := self.why_not(push):
            return 0, Refuse(push.id, why)
        done = {key: lsn for lsn, old in self.pushes() for key in old.batches}
        if both := push.batches & done.keys():
            return max(done[key] for key in both), Refuse(push.id, Why.BATCH_DONE, both)
        self.log.append(push)
        return len(self.log), Ack(push.id, len(self.log))

    def known(self, push):
        """The answer to an id that is in the log and not yet below the session's mark."""
        lsn, old = self.of(push.id.session).get(push.id.seq, (0, None))
        is_member = push.id.session in self.members.sessions
        if old is None or not is_member or push.id.seq < self.mark(push.id.session):
            return 0, None
        if old.digest != push.digest:
            return 0, Refuse(push.id, Why.DIGEST)
        return lsn, Ack(push.id, lsn, again=True)

    def why_not(self, push):
        session, seq, first = push.id.session, push.id.seq, push.first_incomplete
        mark = self.mark(session)
        reasons = {
            Why.FENCED: session not in self.members.sessions,
            Why.STALE: seq < mark,
            Why.WINDOW: not first <= seq < first + WINDOW,
            Why.GAP: not self.of(session).keys() >= set(range(mark, first)),
            Why.UNSEEDED: not self.seeds(still=False),
            Why.NO_KEYS: not push.batches,
        }
        return next((why for why, holds in reasons.items() if holds), None)

    def seeds(self, still):
        return [event for event in self.log if isinstance(event, Seed) and event.still == still]

    def pushes(self):
        entries = enumerate(self.log, 1)
        return [(lsn, event) for lsn, event in entries if isinstance(event, Push)]

    def of(self, session):
        return {p.id.seq: (lsn, p) for lsn, p in self.pushes() if p.id.session == session}

    def mark(self, session):
        return max((p.first_incomplete for _, p in self.of(session).values()), default=0)


class Traffic(RuleBasedStateMachine):
    """Workers push, resend, reorder and duplicate; members change; the log is late."""

    def __init__(self):
        super().__init__()
        self.rig = Rig(is_late=True, seed=False, still=True)
        self.rig.stored()
        self.oracle = Oracle()
        self.oracle.answer(Members(1, frozenset()))
        self.owed: list[tuple[int, object]] = []
        self.sent: list[Push] = []  # whatever was ever on the wire may come again
        self.next_seq = dict.fromkeys(SESSIONS, 0)
        self.acked: dict[PushId, int] = {}
        self.newest = 0

    # --- what happens ---

    @initialize(seed=st.booleans())
    def two_members(self, seed):
        self.a_view(None, joins=True)
        self.a_view(None, joins=True)
        if seed:
            self.first_weights(1, 0, still=True)
            self.first_weights(1, 0, still=False)

    @rule(
        session=st.sampled_from(SESSIONS),
        batches=st.frozensets(st.integers(0, 12), max_size=3),
        ahead=st.integers(0, WINDOW),
        behind=st.integers(-2, 1),
        digest=st.integers(0, 1),
    )
    def a_push(self, session, batches, ahead, behind, digest):
        """Mostly as a worker would; else with a mark or an id that no worker would send."""
        seq, first = self.next_seq[session] + ahead, max(0, self.next_seq[session] + behind)
        keys = frozenset(BatchKey(0, batch) for batch in batches)
        self.send(Push(PushId(session, seq), first, keys, digest, 0))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def an_old_message_again(self, data):
        self.send(data.draw(st.sampled_from(self.sent)))

    @rule(session=st.sampled_from(SESSIONS), digest=st.integers(0, 1), still=st.booleans())
    def first_weights(self, session, digest, still):
        self.tell(Seed(session, digest, self.rig.lend(), still))

    @rule(leaver=st.sampled_from([None, *SESSIONS]), joins=st.booleans())
    def a_view(self, leaver, joins):
        """A session that left never comes back: its worker gets a new one."""
        sessions = self.rig.shard.sessions - {leaver}
        if joins and self.newest < max(SESSIONS):
            self.newest += 1
            sessions |= {self.newest}
        self.rig.view += 1
        self.tell(Members(self.rig.view, sessions))

    @rule(back=st.integers(0, 2))
    def an_old_view_again(self, back):
        self.tell(Members(max(0, self.rig.view - back), frozenset(SESSIONS)))

    @rule(data=st.data())
    def the_log_gets_on(self, data):
        shard = self.rig.shard
        upto = data.draw(st.integers(shard.stored, shard.logged))
        self.hear(self.rig.stored(upto))

    @precondition(lambda self: self.rig.shard.logged == self.rig.shard.applied)
    @rule()
    def a_restart_from_a_snapshot(self):
        data = self.rig.shard.snapshot()
        self.rig.shard = Shard(ASYNC, has_still=True)
        self.rig.shard.restore(data)
        assert self.rig.shard.snapshot() == data

    def send(self, push: Push):
        self.sent.append(push)
        handle = self.rig.lend()
        self.tell(Push(push.id, push.first_incomplete, push.batches, push.digest, handle))

    def tell(self, event):
        self.owed.append(self.oracle.answer(event))
        self.hear(self.rig.do(event))

    def hear(self, answers):
        """Exactly what is due by now, in the order of the records that it waited for."""
        stored = self.rig.shard.stored
        due = sorted((owed for owed in self.owed if owed[0] <= stored), key=lambda owed: owed[0])
        assert answers == [answer for _, answer in due]
        self.owed = [owed for owed in self.owed if owed[0] > stored]
        for answer in answers:
            if isinstance(answer, Ack):
                assert self.acked.setdefault(answer.id, answer.lsn) == answer.lsn, "another answer"
                self.forward(answer.id.session)

    def forward(self, session: int):
        """Like a worker: the mark is the first push that is not acknowledged."""
        while PushId(session, self.next_seq[session]) in self.acked:
            self.next_seq[session] += 1

    # --- what always holds ---

    @invariant()
    def the_log_is_the_oracles(self):
        logged = [what_it_holds(record) for record in self.rig.logged]
        assert logged == self.oracle.log
        assert [record.lsn for record in self.rig.logged] == list(range(1, len(logged) + 1))
        assert self.rig.applied == self.rig.logged[: self.rig.shard.stored]

    @invariant()
    def each_id_and_each_batch_is_logged_once(self):
        pushes = pushes_in(self.rig.logged)
        ids, keys = [p.id for p in pushes], [key for p in pushes for key in p.batches]
        assert len(ids) == len(set(ids))
        assert len(keys) == len(set(keys))

    @invariant()
    def what_is_acknowledged_is_applied(self):
        assert self.acked.keys() <= set(self.rig.pushes)

    @invariant()
    def no_window_outgrows_its_bound(self):
        assert all(len(w.applied) <= WINDOW for w in self.rig.shard.windows.values())

    def teardown(self):
        """Once all is stored nothing is owed, and each member's next push lands."""
        self.hear(self.rig.stored())
        assert not self.owed
        assert self.acked.keys() == set(self.rig.pushes)
        assert not self.rig.lent
        if self.rig.shard.seed_digest is not None:
            for session in self.rig.shard.sessions:
                first = self.next_seq[session]
                self.rig.push(session, first, NEXT + session)
                assert lsn(self.rig.stored()) == self.rig.shard.logged


def what_it_holds(record):
    match record:
        case PushRecord(_, (push,)):
            return push
        case SeedRecord(_, seed):
            return seed
    return record.members


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
