"""The machine under random events, kills and restarts, against an oracle that only counts."""

from collections import defaultdict

from coordinator.harness import Cluster, Member, keys_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from hubring_common.ids import BatchKey
from hubring_common.messages import (
    BatchTotals,
    EvaluationPart,
    EvaluationState,
    EvaluationTask,
    Formed,
    Install,
    Members,
    MemberState,
    Recall,
    RunState,
    Span,
    Total,
)
from hubring_coordinator.machine import events

BATCHES = 23
PICK = st.integers(0, 1000)


class CoordinatorMachine(RuleBasedStateMachine):
    """Its oracle: who was handed each batch, and which batches were ever settled as done."""

    @initialize(servers=st.integers(1, 2), workers=st.integers(0, 3))
    def begin(self, servers, workers):
        """With workers the run is formed at once; without, by whatever rules come."""
        self.cluster = Cluster(servers, forming_timeout=1e9)
        self.servers: list[Member] = []
        self.workers: list[Member] = []
        self.owner: dict[BatchKey, Member] = {}
        self.done: set[BatchKey] = set()
        self.acked: dict[int, set[int]] = defaultdict(set)  # server's session -> sessions admitted
        self.sessions: list[int] = []
        self.answered: set[int] = set()
        self.takes: dict[int, Member] = {}
        self.measured: dict[tuple[int, int], tuple[BatchTotals, ...]] = {}
        for slot in range(servers if workers else 0):
            self.server_comes(slot)
        for number in range(workers):
            self.worker_comes()
            self.worker_declares(number)
        for number in range(servers):
            self.server_acks(number, 3)
        self.worker_seeds(0)

    # --- members ---

    @rule(slot=st.integers(0, 2))
    def server_comes(self, slot):
        self.come(self.servers, self.cluster.server(slot))

    @rule()
    def worker_comes(self):
        if len(self.live_workers()) < 4:
            self.come(self.workers, self.cluster.worker())

    def come(self, members, member):
        if member.session:
            assert not self.sessions or member.session > max(self.sessions), "a session reused"
            self.sessions.append(member.session)
            members.append(member)

    @rule(pick=PICK)
    def worker_declares(self, pick):
        if worker := self.one_of(self.workers, pick):
            worker.declare()
            worker.declare_data(BATCHES)

    @rule(pick=PICK, count=st.integers(1, 3))
    def server_acks(self, pick, count):
        if server := self.one_of(self.servers, pick):
            orders = [o for o in server.heard if isinstance(o, (Install, Members))]
            for order in orders[:count] if count < 3 else orders:
                if isinstance(order, Members):
                    self.acked[server.session] |= set(order.sessions)
                self.cluster.do(events.OrderAcked(server.stream, order.order))

    @rule(pick=PICK)
    def worker_seeds(self, pick):
        if worker := self.one_of(self.workers, pick):
            formed = worker.last(Formed)
            if formed is not None and formed.seed_them:
                worker.seeded()

    @rule(pick=PICK, of_servers=st.booleans())
    def stream_breaks_and_returns(self, pick, of_servers):
        if member := self.one_of(self.servers if of_servers else self.workers, pick):
            member.detach()
            member.reattach()

    @rule(pick=PICK, seconds=st.sampled_from([1, 4, 11]))
    def one_falls_silent(self, pick, seconds):
        """A worker, for this long; everyone else is heard."""
        silent = self.one_of(self.workers, pick)
        others = [m for m in (*self.servers, *self.workers) if m is not silent]
        self.cluster.wait(seconds, beating=others)

    @rule(pick=PICK)
    def worker_is_cut_off_while_another_trains(self, pick):
        if worker := self.one_of(self.workers, pick):
            self.worker_takes(pick, 0, 1)
            worker.detach()
            self.worker_trains_an_epoch(pick + 1, 0)
            others = [m for m in (*self.servers, *self.workers) if m is not worker]
            self.cluster.wait(1, beating=others)
            worker.reattach()

    # --- data ---

    @rule(pick=PICK, epoch=st.integers(0, 2), times=st.integers(1, 4))
    def worker_takes(self, pick, epoch, times):
        for _ in range(times):
            if worker := self.one_of(self.workers, pick):
                worker.take(epoch)
                self.takes[self.cluster.last_call] = worker

    @rule(pick=PICK, epoch=st.integers(0, 2), pace=st.sampled_from([2.0, 40.0]))
    def worker_takes_ahead(self, pick, epoch, pace):
        if worker := self.one_of(self.workers, pick):
            worker.take(epoch, pace=pace, ahead=True)
            self.takes[self.cluster.last_call] = worker

    @rule(pick=PICK, is_willing=st.booleans())
    def worker_answers_a_recall(self, pick, is_willing):
        worker = self.one_of(self.workers, pick)
        recall = worker.last(Recall) if worker else None
        if recall is None or self.cluster.state.is_over:
            return
        mine = sorted(k for k, owner in self.owner.items() if owner is worker)
        keys = [k for k in mine if k.epoch == recall.epoch][-recall.count :] if is_willing else []
        spans = [Span(key.epoch, key.batch, 1) for key in keys]
        worker.settle(returned=spans, recall=recall.recall)
        for key in keys:
            del self.owner[key]

    @rule(pick=PICK)
    def worker_evaluates(self, pick):
        """It comes to its next evaluation, and measures whatever it is given."""
        if worker := self.one_of(self.workers, pick):
            number = len(self.cluster.machine.status().evaluations) or 1
            measured = self.measured.pop((worker.session, number), ())
            answer = self.cluster.call(EvaluationPart(worker.session, number, 5, {}, measured))
            if isinstance(answer, EvaluationTask) and answer.state is EvaluationState.TASK:
                batches = range(answer.first, answer.first + answer.count)
                totals = tuple(BatchTotals(b, {"x": Total(float(b), 1.0)}) for b in batches)
                self.measured[worker.session, number] = totals

    @invariant()
    def an_evaluations_result_is_exact(self):
        for evaluation in self.cluster.machine.status().evaluations:
            if evaluation.metrics:
                assert evaluation.metrics == {"x": 2.0}

    @rule(pick=PICK, epoch=st.integers(0, 2))
    def worker_trains_an_epoch(self, pick, epoch):
        if worker := self.one_of(self.workers, pick):
            self.drive(worker, epoch)

    @rule(pick=PICK, keep=st.integers(0, 3), is_done=st.booleans())
    def worker_settles(self, pick, keep, is_done):
        if worker := self.one_of(self.workers, pick):
            keys = sorted(key for key, owner in self.owner.items() if owner is worker)[keep:]
            self.settle(worker, keys, is_done=is_done)

    def settle(self, worker, keys, *, is_done):
        if self.cluster.state.is_over or not keys:
            return
        spans = [Span(key.epoch, key.batch, 1) for key in keys]
        if is_done:
            worker.settle(*spans)
            self.done.update(keys)
        else:
            worker.settle(returned=spans)
        for key in keys:
            self.owner.pop(key, None)

    @rule(pick=PICK)
    @precondition(lambda self: len(self.live_workers()) > 1)
    def worker_finishes(self, pick):
        if worker := self.one_of(self.workers, pick):
            worker.finish()
            self.forget(worker)

    @rule(pick=PICK, kind=st.sampled_from(["", "TimedOut", "LeaseLost"]))
    @precondition(lambda self: len(self.live_workers()) > 1)
    def worker_leaves(self, pick, kind):
        if worker := self.one_of(self.workers, pick):
            worker.leave(kind, "it chose to")
            self.forget(worker)

    def forget(self, worker):
        self.owner = {key: owner for key, owner in self.owner.items() if owner is not worker}

    @rule()
    @precondition(lambda self: len(self.sessions) > 6)
    def someone_drains(self):
        self.cluster.stop()

    # --- kills ---

    @rule(pick=PICK, is_committed=st.booleans())
    @precondition(lambda self: not self.cluster.overs)
    def coordinator_is_killed(self, pick, is_committed):
        """While it handles a Take: before its rows are committed, or after, unanswered."""
        if worker := self.one_of(self.workers, pick):
            take = events.Called(self.cluster.new_number(), worker.new_take())
            effects = self.cluster.machine.handle(take, self.cluster.now)
            if is_committed:
                self.cluster.commit(effects)
        self.cluster.restart()
        for member in (*self.servers, *self.workers):
            member.reattach()

    # --- the oracle ---

    @invariant()
    def no_batch_is_handed_out_twice(self):
        for call in self.cluster.answers.keys() - self.answered:
            self.answered.add(call)
            taken = self.cluster.answers[call]
            if call in self.takes and getattr(taken, "spans", ()):
                for key in keys_of(taken.spans):
                    assert key not in self.done, "done once already"
                    assert self.is_gone(self.owner.get(key)), "leased to two"
                    self.owner[key] = self.takes[call]

    @invariant()
    def done_counts_are_the_oracles(self):
        for epoch in self.cluster.machine.status().epochs:
            assert epoch.done == len({k for k in self.done if k.epoch == epoch.epoch})
            aside = [b for b in self.cluster.machine.status().set_aside if b.epoch == epoch.epoch]
            counted = epoch.done + epoch.leased + epoch.left + len(aside)
            assert epoch.batches == BATCHES == counted

    @invariant()
    def nobody_hears_formed_before_every_server_admitted_it(self):
        """P5, from what the servers acknowledged."""
        servers = {server.name: server for server in self.servers}
        for worker in self.workers:
            if (formed := worker.last(Formed)) is not None:
                for place in formed.places:
                    assert worker.session in self.acked[servers[place.server].session]

    @invariant()
    def a_run_ends_once(self):
        assert len(self.cluster.overs) == self.cluster.machine.status().state.is_over
        assert self.cluster.exits <= 1

    def teardown(self):
        """Whatever happened: with live servers and a worker that trains, the run comes to rest."""
        if not hasattr(self, "cluster") or not self.cluster.status.shards:
            return
        if self.cluster.state is not RunState.TRAINING:
            return
        self.come(self.workers, self.cluster.worker())
        workers = self.live_workers()
        for worker in workers:
            worker.declare()
            worker.declare_data(BATCHES)
        for server in self.servers:
            server.ack()
        for epoch in range(16):  # a minute of work of each worker may be of so many
            for worker in workers:
                keys = [key for key, owner in self.owner.items() if owner is worker]
                self.settle(worker, keys, is_done=True)
                self.drive(worker, epoch)
        for worker in workers:
            worker.finish()
        tasks = self.cluster.machine._state.tasks
        lost = {n: (e.lost, e.lost_with) for n, e in tasks.epochs.items() if e.lost}
        assert self.cluster.state is RunState.QUIET, (self.cluster.status.waiting_for, lost)
        for worker in self.workers:
            worker.leave()
        assert self.cluster.state is RunState.FINISHED

    def drive(self, worker, epoch):
        for _ in range(BATCHES):
            taken = worker.take(epoch)
            self.takes[self.cluster.last_call] = worker
            self.no_batch_is_handed_out_twice()
            if not (spans := getattr(taken, "spans", ())):
                return
            self.settle(worker, keys_of(spans), is_done=True)

    # --- picking ---

    def states(self):
        return {member.session: member.state for member in self.cluster.machine.status().members}

    def is_gone(self, worker):
        return worker is None or self.states().get(worker.session) is MemberState.DEAD

    def live_workers(self):
        states, alive = self.states(), {MemberState.JOINING, MemberState.ACTIVE}
        return [w for w in self.workers if states.get(w.session) in alive]

    def one_of(self, members, pick):
        states = self.states()
        able = [m for m in members if states.get(m.session) is not MemberState.DEAD]
        able = [m for m in able if m.stream not in self.cluster.closed]
        if members is self.workers:
            able = [m for m in able if m in self.live_workers()]
        return able[pick % len(able)] if able else None


CoordinatorMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None
)
TestCoordinatorMachine = CoordinatorMachine.TestCase
