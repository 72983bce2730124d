"""From servers and a first worker to seeded shards, and each later joiner's way in.

Rules, not steps: `advance` sends whatever a member should have been told and was not. So a
re-attached member, or a restarted coordinator, needs no case of its own.
"""

from collections.abc import Mapping

from hubring_common.errors import (
    InvalidMessage,
    ModelMismatch,
    NotYet,
    SettingsMismatch,
    UsageError,
)
from hubring_common.ids import View
from hubring_common.layout import MASTER, ModelSpec
from hubring_common.messages import (
    Done,
    Formed,
    Install,
    Members,
    MemberState,
    ModelDeclaration,
    RunState,
    Seeded,
    ShardPlace,
)
from hubring_coordinator.machine.attendance import INSTALL_ORDER, members_order
from hubring_coordinator.machine.members import Member
from hubring_coordinator.machine.state import VACANT, ModelBinding, State

SAME = "Same model? Otherwise: hubring stop, or --run-id new"


class Forming:
    def __init__(self, state: State) -> None:
        self._state = state

    def declare(self, member: Member, declared: ModelDeclaration) -> Done:
        """Raises ModelMismatch or SettingsMismatch, naming the first difference."""
        state = self._state
        if state.model is None:
            _require_holdable(declared.spec)
            state.model = ModelBinding(
                declared.spec, declared.settings, member.name, member.session
            )
            state.touch("model")
        self._compare(declared, state.model)
        member.declared = True
        state.roster.touch(member.session)
        return Done()

    def mark_seeded(self, member: Member, seeded: Seeded) -> Done:
        """Raises NotYet where the shards are not the ones that the chief was told to seed."""
        state, run = self._state, self._state.run
        if run.seeded_by == member.session:
            return Done()
        if run.seeded_by or member is not state.chief:
            fact = f"{member.name} is not to seed this run"
            raise UsageError(fact, who=member.name, todo="only the chief does, once")
        formed = self._formed_for(member, self.admitted(), self._places())
        if formed is None or not _same(formed, member.told.formed):
            fact = "the servers are not those that were seeded"
            raise NotYet(fact, who="the coordinator", todo="wait for Formed and seed them again")
        if len(seeded.digests) != run.servers:
            fact = f"{len(seeded.digests)} digests for {run.servers} shards"
            raise InvalidMessage(fact, who=member.name)
        run.seeded_by, run.state = member.session, RunState.TRAINING
        state.touch("run")
        words = f"run {run.id} is training: {member.name} seeded {run.servers} shards"
        state.note("training", member.name, words)
        return Done()

    def advance(self) -> None:
        if self._state.run.state.is_over:
            return
        self._admit()
        self._place()
        for shard, server in enumerate(self._state.run.places):
            if server != VACANT:
                self._order(self._state.roster.all[server], shard)
        view, places = self.admitted(), self._places()
        for worker in self._state.roster.in_view:
            self._inform(worker, self._formed_for(worker, view, places))

    def admitted(self) -> int:
        """The highest view that every shard's server acknowledged; 0 while there is none."""
        servers = self._state.placed
        is_whole = len(servers) == self._state.run.servers and all(s.installed for s in servers)
        return min(server.acked for server in servers) if is_whole else 0

    def _compare(self, declared: ModelDeclaration, bound: ModelBinding) -> None:
        if difference := declared.spec.difference(bound.spec):
            raise ModelMismatch(f"{difference} (set by {bound.by})", todo=SAME)
        require_equal(declared.settings, bound.settings, bound.by)

    def _admit(self) -> None:
        """Each worker that declared gets a view. A lower session than the chief's must wait for
        the seeding: it would become chief while the other is sending the weights.
        """
        state = self._state
        for worker in state.roster.workers:
            chief = state.chief
            may_come = state.run.seeded_by or chief is None or worker.session > chief.session
            if worker.declared and not worker.since and may_come:
                worker.since = state.change_view()
                state.roster.touch(worker.session)

    def _place(self) -> None:
        """Deal the shards: all at first, by slot; then those of servers that died unseeded."""
        state, run = self._state, self._state.run
        if state.model is None or run.seeded_by:
            return
        spare = [s.session for s in state.roster.servers if s.session not in run.places]
        places = run.places or (VACANT,) * run.servers
        if not spare or (not run.places and len(spare) < run.servers):
            return
        filled = tuple(spare.pop(0) if s == VACANT and spare else s for s in places)
        if filled != run.places:
            run.places = filled
            state.touch("run")

    def _order(self, server: Member, shard: int) -> None:
        state, run, told = self._state, self._state.run, server.told
        if server.stream is None or state.model is None:
            return
        if not server.installed and not told.install:
            told.install = True
            state.tell(server, Install(INSTALL_ORDER, shard, run.servers, state.model.spec))
        if told.view < run.view:
            told.view = run.view
            sessions = tuple(worker.session for worker in state.roster.in_view)
            state.tell(server, Members(members_order(run.view), run.view, sessions))

    def _inform(self, worker: Member, formed: Formed | None) -> None:
        if formed is None or worker.stream is None or _same(formed, worker.told.formed):
            return
        if worker.state is MemberState.JOINING and self._state.evaluations.is_open:
            return  # its pushes would change the weights that the others evaluate
        worker.told.formed = formed
        self._state.tell(worker, formed)
        if formed.seeded and worker.state is MemberState.JOINING:
            worker.state = MemberState.ACTIVE
            self._state.roster.touch(worker.session)

    def _formed_for(
        self, worker: Member, view: View, places: tuple[ShardPlace, ...]
    ) -> Formed | None:
        """What `worker` should know of the run, or None while it is not admitted (P5)."""
        if view == 0 or view < worker.since:
            return None
        if self._state.run.seeded_by:
            return Formed(view, places, seeded=True, seed_them=False)
        is_chief = worker is self._state.chief
        if is_chief and view < self._state.removed_in:
            return None  # some server still takes the earlier chief for the chief
        return Formed(view, places, seeded=False, seed_them=is_chief)

    def _places(self) -> tuple[ShardPlace, ...]:
        servers = enumerate(self._state.placed)
        return tuple(ShardPlace(shard, s.name, s.endpoints) for shard, s in servers)


def _same(formed: Formed, told: Formed | None) -> bool:
    """Whether `told` says as much: a later view alone is no news to a worker."""
    if told is None:
        return False
    return (formed.places, formed.seeded, formed.seed_them) == (
        told.places,
        told.seeded,
        told.seed_them,
    )


def require_equal(here: Mapping[str, str], there: Mapping[str, str], by: str) -> None:
    """Raises SettingsMismatch, naming the first field that differs."""
    for name in dict.fromkeys((*there, *here)):
        ours, theirs = here.get(name, "absent"), there.get(name, "absent")
        if ours != theirs:
            fact = f"{name} is {ours} here but {theirs} on the cluster (set by {by})"
            raise SettingsMismatch(fact, todo="give every worker of a run the same settings")


def _require_holdable(spec: ModelSpec) -> None:
    for param in spec.params:
        if param.dtype not in MASTER:
            fact = f"{param.name} is {param.dtype}; the hub holds {', '.join(MASTER)}"
            raise ModelMismatch(fact, todo="leave it out of the optimizer")
    if not spec.params:
        raise ModelMismatch("the optimizer has no parameters", todo="give it model.parameters()")
