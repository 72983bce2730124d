"""The run as the status call, the page and the summary show it."""

from hubring_common.messages import ShardProgress, ShardStatus, Status
from hubring_coordinator.machine.ledger import verdict
from hubring_coordinator.machine.state import VACANT, State
from hubring_coordinator.machine.stopping import facts
from hubring_coordinator.machine.waiting import Waiting


def status(state: State, waiting: Waiting) -> Status:
    run = state.run
    return Status(
        run.id,
        run.state,
        run.mode,
        run.why,
        run.who,
        run.kind,
        run.traceback,
        "" if run.state.is_over else waiting.words,
        state.elapsed,
        run.first_step,
        tuple(member.status(state.now) for member in state.roster.all.values()),
        tuple(_shard(state, shard) for shard in range(len(run.places))),
        state.tasks.status(),
        run.metrics,
        run.model,
        tuple(state.chronicle.events.values()),
        tuple(evaluation.status() for evaluation in state.evaluations.all.values()),
        state.rules.goals(facts(state)),
        set_aside=state.tasks.set_aside(),
        ledger=_ledger(state),
        boot=state.boot,
        epochs_done=state.tasks.done,
    )


def _ledger(state: State) -> str:
    """The end's check. A shard's own count holds once its server spoke after the end."""
    if not state.run.state.is_over or not state.tasks.epochs:
        return ""
    if state.data is not None and "shards" in state.data.settings:
        return verdict(state.tasks.begun(), (), "shards")  # the servers count its batches
    servers = [s for s in state.placed if s.heard > state.ended]
    kept = [progress.batches for server in servers for progress in server.shards]
    return verdict(state.tasks.begun(), kept)


def _shard(state: State, shard: int) -> ShardStatus:
    session = state.run.places[shard]
    if session == VACANT or (server := state.roster.all.get(session)) is None:
        return ShardStatus(shard, "", ShardProgress(shard=shard))
    found = (progress for progress in server.shards if progress.shard == shard)
    return ShardStatus(shard, server.name, next(found, ShardProgress(shard=shard)))
