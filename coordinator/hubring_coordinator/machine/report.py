"""The run as the status call, the page and the summary show it."""

from hubring_common.messages import ShardProgress, ShardStatus, Status
from hubring_coordinator.machine.state import VACANT, State
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
    )


def _shard(state: State, shard: int) -> ShardStatus:
    session = state.run.places[shard]
    if session == VACANT or (server := state.roster.all.get(session)) is None:
        return ShardStatus(shard, "", ShardProgress(shard=shard))
    found = (progress for progress in server.shards if progress.shard == shard)
    return ShardStatus(shard, server.name, next(found, ShardProgress(shard=shard)))
