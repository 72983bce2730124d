"""All that the page, `hubring top` and the saved report show, as plain data. Pure and bounded.

Text in it came from members and scripts: whoever shows it must show it as text.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

from hubring_common import plain
from hubring_common.messages import (
    EpochStatus,
    Goal,
    MemberStatus,
    Role,
    RunEvent,
    RunState,
    ShardStatus,
    Status,
)
from hubring_common.report import totals, workers
from hubring_common.timing import Timing
from hubring_coordinator.page.diagnosis import diagnose, is_silent
from hubring_coordinator.page.history import History, is_live, loss_of, sample

MEMBERS, EPOCHS, EVENTS, EVALUATIONS, BATCHES, GOALS, METRICS = 100, 12, 200, 50, 50, 16, 50
"""How many of each are shown, at most."""
FINISHED = 4
"""Finished epochs that are shown beside the others."""
WORDS, TRACE = 2_000, 20_000
"""Characters of one text, and of a traceback, at most."""
ERRORS = {"died", "failed"}
"""Kinds of events that are errors; the first one is pinned."""


def view(status: Status, history: History, timing: Timing) -> dict[str, Any]:
    """`status` as people want to see it, with what `history` knows of the way to it."""
    found = diagnose(status, history, timing)
    shown = {
        **_head(status, history),
        "diagnosis": {"level": found.level.value, "kind": found.kind, "words": found.words},
        "eta": eta(status),
        "goals": [_goal(goal) for goal in status.goals[:GOALS]],
        **_members(status, timing),
        "staleness": staleness(status),
        "shards": [_shard(shard) for shard in status.shards],
        "data": data(status),
        **_evaluations(status),
        **_events(status, history),
    }
    cleaned: dict[str, Any] = plain.finite(shown)
    return cleaned


def _head(status: Status, history: History) -> dict[str, Any]:
    counts, now = totals(status), sample(status).point
    steps = max(now.steps, history.last.steps if history.last else 0)
    return {
        "run": status.run,
        "mode": status.mode,
        "state": status.state.name.lower(),
        "is_over": status.state.is_over,
        "why": _cut(status.why),
        "who": _cut(status.who),
        "kind": _cut(status.kind),
        "traceback": status.traceback[-TRACE:],
        "waiting_for": _cut(status.waiting_for),
        "model": status.model,
        "ledger": status.ledger,
        "boot": status.boot,
        "seconds": status.seconds,
        "first_step_seconds": status.first_step_seconds,
        **counts,
        "steps": steps,
        "epoch": max((m.worker.epoch for m in workers(status) if m.worker), default=0),
        "loss": loss_of(status),
        "rate": now.rate if math.isfinite(now.rate) else counts["examples_per_second"],
        "metrics": {_cut(k): v for k, v in list(status.metrics.items())[:METRICS]},
    }


# --- goals ---------------------------------------------------------------------------------


def eta(status: Status) -> dict[str, Any] | None:
    """The goal that will be reached first and the seconds until then, at the pace so far.

    Only of goals that are counted: when a loss will be low enough, nobody knows.
    """
    times = [
        (left, goal.name) for goal in status.goals if (left := _left(goal, status)) is not None
    ]
    is_going = status.state is RunState.TRAINING
    return {"seconds": min(times)[0], "goal": min(times)[1]} if times and is_going else None


def _left(goal: Goal, status: Status) -> float | None:
    kind = _counted(goal)
    left = max(0.0, goal.wanted - goal.reached)
    if kind == "seconds":
        return left
    trained = status.seconds - status.first_step_seconds
    is_paced = kind and goal.reached > 0 and status.first_step_seconds > 0 and trained > 0
    return left * trained / goal.reached if is_paced else None


def _goal(goal: Goal) -> dict[str, Any]:
    """`share` where more is nearer and both count from 0."""
    is_share = _counted(goal) or " within " in goal.name
    share = min(1.0, goal.reached / goal.wanted) if is_share and goal.wanted > 0 else None
    return {**plain.dump(goal), "name": _cut(goal.name), "share": share}


def _counted(goal: Goal) -> str:
    """steps, epochs or seconds where that is what the goal counts: "steps 2000"; else ""."""
    kind, *more = goal.name.split(" ")
    return kind if kind in {"steps", "epochs", "seconds"} and len(more) == 1 else ""


# --- members and shards --------------------------------------------------------------------


def _members(status: Status, timing: Timing) -> dict[str, Any]:
    """Live ones first, workers before servers, then the last that are gone."""
    live = sorted((m for m in status.members if is_live(m)), key=lambda m: m.role.value)
    gone = [m for m in reversed(status.members) if not is_live(m)]
    shown = [*live, *gone][:MEMBERS]
    return {
        "members": [_member(m, timing) for m in shown],
        "members_left_out": len(status.members) - len(shown),
        "live": {role.name.lower(): sum(m.role is role for m in live) for role in Role},
        "lease": timing.lease,
    }


def _member(member: MemberStatus, timing: Timing) -> dict[str, Any]:
    row = {
        "name": _cut(member.name),
        "role": member.role.name.lower(),
        "state": "silent" if is_silent(member, timing) else member.state.name.lower(),
        "session": member.session,
        "host": _cut(member.host),
        "pid": member.pid,
        "last_heard": member.last_heard,
        "why": _cut(member.why),
    }
    return row if member.worker is None else {**row, **_progress(member)}


def _progress(member: MemberStatus) -> dict[str, Any]:
    worker = member.worker
    assert worker is not None
    return {
        "steps": worker.steps,
        "samples": worker.samples,
        "epoch": worker.epoch,
        "loss": worker.loss,
        "rate": worker.rate if is_live(member) else 0.0,
        "wait_share": worker.wait_share,
        "waiting_for": _cut(worker.waiting_for),
        "staleness_mean": worker.staleness_sum / worker.pushes if worker.pushes else 0.0,
        "staleness_max": worker.staleness_max,
    }


def staleness(status: Status) -> dict[str, Any]:
    """Pushes by staleness, over all workers, in buckets 0, 1, 2-3, 4-7, ..."""
    rows = [m.worker.staleness for m in workers(status) if m.worker]
    counts = [sum(bucket) for bucket in zip_longest(*rows, fillvalue=0)]
    return {"buckets": [bucket(i) for i in range(len(counts))], "pushes": counts}


def bucket(number: int) -> str:
    low, high = edges(number)
    return str(low) if low == high else f"{low}-{high}"


def edges(number: int) -> tuple[int, int]:
    """The least and the largest staleness of a bucket."""
    return (0, 0) if number == 0 else (1 << (number - 1), (1 << number) - 1)


def _shard(shard: ShardStatus) -> dict[str, Any]:
    progress = shard.progress
    each = progress.apply_seconds / progress.applied if progress.applied else math.nan
    shown = ("nbytes", "version", "applied", "queue", "duplicates", "refused", "batches")
    counts = {name: getattr(progress, name) for name in shown}
    return {"shard": shard.shard, "server": _cut(shard.server), **counts, "apply_ms": 1000 * each}


# --- data, evaluations, events -------------------------------------------------------------


def data(status: Status) -> dict[str, Any]:
    """The unfinished epochs and the last finished ones; the others as one number."""
    done = [e for e in status.epochs if is_done(e)]
    going = [e for e in status.epochs if not is_done(e)]
    room = min(FINISHED, max(0, EPOCHS - len(going)))
    shown = sorted([*going[:EPOCHS], *(done[-room:] if room else [])], key=lambda e: e.epoch)
    named = [plain.dump(batch) for batch in status.set_aside[-BATCHES:]]
    return {
        "epochs": [plain.dump(epoch) for epoch in shown],
        "epochs_done": max(status.epochs_done, len(done)),
        "epochs_left_out": len(status.epochs) - len(shown),
        "set_aside": named,
        "set_aside_count": len(status.set_aside),
    }


def is_done(epoch: EpochStatus) -> bool:
    return epoch.done >= epoch.batches


def _evaluations(status: Status) -> dict[str, Any]:
    shown = [plain.dump(each) for each in status.evaluations[-EVALUATIONS:]]
    for each in shown:
        each["metrics"] = {_cut(k): v for k, v in list(each["metrics"].items())[:METRICS]}
    return {"evaluations": shown}


def _events(status: Status, history: History) -> dict[str, Any]:
    first = next((event for event in status.events if event.kind in ERRORS), None)
    return {
        "events": list(_told(status.events[-EVENTS:], history)),
        "first_error": next(_told([first], history)) if first else None,
    }


def _told(events: Iterable[RunEvent], history: History) -> Any:
    return (
        {
            "seconds": event.seconds,
            "steps": history.steps_at(event.seconds),
            "kind": _cut(event.kind),
            "who": _cut(event.who),
            "text": _cut(event.text),
            "is_error": event.kind in ERRORS,
        }
        for event in events
    )


def _cut(text: str) -> str:
    return text if len(text) <= WORDS else f"{text[:WORDS]}…"


def whole(status: Mapping[str, Any], shown: Mapping[str, Any], past: History) -> dict[str, Any]:
    """/status.json: the fields of `messages.Status`, and under `view` what the page shows."""
    return {**status, "view": {**shown, "history": past.as_json()}}
