"""What holds the run back, in one sentence with measured facts. Pure.

The rules stand in order of weight; the first that holds is the diagnosis.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from hubring_common.messages import MemberState, MemberStatus, Role, RunState, Status
from hubring_common.report import mean, totals, workers
from hubring_common.timing import Timing
from hubring_coordinator.page.history import History, busiest, is_live

BUSY_SHARE, WAIT_SHARE, SLOW_SHARE = 0.7, 0.5, 0.6
"""A shard that applies for more of the time than this is the bottleneck; workers that wait for
more of it are held up by the hub; a worker below this share of the others' median is slow.
"""
QUEUED = 2
"""Pushes that wait at a shard, from which on it is behind."""
HEARTBEATS = 3
"""Heartbeats that a member may miss until it is called silent."""
RECENT = 30.0
"""Seconds for which a death is news."""


class Level(Enum):
    GOOD = "good"
    WAIT = "wait"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    level: Level
    kind: str
    words: str


@dataclass(frozen=True, slots=True)
class Case:
    status: Status
    history: History
    timing: Timing

    @property
    def live(self) -> list[MemberStatus]:
        return [m for m in self.status.members if is_live(m)]

    @property
    def busy(self) -> list[MemberStatus]:
        return [m for m in workers(self.status) if m.state is MemberState.ACTIVE and m.worker]

    @property
    def window(self) -> float:
        """Seconds that the recent samples span."""
        recent = self.history.recent
        return recent[-1].point.seconds - recent[0].point.seconds if recent else 0.0

    def server_of(self, shard: int) -> str:
        found = (s.server for s in self.status.shards if s.shard == shard)
        return next(found, "") or "no server"


Rule = Callable[[Case], Diagnosis | None]


def diagnose(status: Status, history: History, timing: Timing) -> Diagnosis:
    case = Case(status, history, timing)
    return next(found for rule in RULES if (found := rule(case)) is not None)


def is_silent(member: MemberStatus, timing: Timing) -> bool:
    return is_live(member) and member.last_heard > HEARTBEATS * timing.heartbeat


def duration(seconds: float) -> str:
    """`8.2 s`, `3 min 12 s`, `5 h 2 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole // 60} min {whole % 60} s"


# --- the rules, in order -------------------------------------------------------------------


def _is_over(case: Case) -> Diagnosis | None:
    status = case.status
    if not status.state.is_over:
        return None
    counts, after = totals(status), duration(status.seconds)
    facts = f"{counts['steps']} steps, {counts['examples_per_second']:.0f} examples/s"
    why = f": {status.why}" if status.why else ""
    if status.state is RunState.FAILED:
        by = f" by {status.who}" if status.who and status.who not in status.why else ""
        return Diagnosis(Level.BAD, "failed", f"Failed after {after}{by}{why} ({facts}).")
    kind = status.state.name.lower()
    level = Level.GOOD if status.state is RunState.FINISHED else Level.WARN
    return Diagnosis(level, kind, f"{kind.capitalize()} after {after}{why} ({facts}).")


def _has_silent(case: Case) -> Diagnosis | None:
    silent = [m for m in case.live if is_silent(m, case.timing)]
    if not silent:
        return None
    worst = max(silent, key=lambda m: m.last_heard)
    more = len(silent) - 1
    others = ("", ", and so is 1 other", f", and so are {more} others")[min(more, 2)]
    words = (
        f"{worst.name} on {worst.host or 'an unnamed host'} is silent: last heard "
        f"{duration(worst.last_heard)} ago{others}; it counts as dead after "
        f"{case.timing.lease:g} s."
    )
    return Diagnosis(Level.WARN, "silent", words)


def _is_waiting(case: Case) -> Diagnosis | None:
    status = case.status
    if not status.waiting_for:
        return None
    state = status.state.name.lower().capitalize()
    return Diagnosis(Level.WAIT, "waiting", f"{state}: {status.waiting_for}.")


def _has_died(case: Case) -> Diagnosis | None:
    status = case.status
    fresh = [e for e in status.events if e.kind == "died" and status.seconds - e.seconds < RECENT]
    if not fresh:
        return None
    ago = duration(max(0.0, status.seconds - fresh[-1].seconds))
    left = sum(1 for m in case.live if m.role is Role.WORKER)
    on = "1 worker goes on" if left == 1 else f"{left} workers go on"
    return Diagnosis(Level.WARN, "died", f"{fresh[-1].text} ({ago} ago); {on}.")


def _has_no_step(case: Case) -> Diagnosis | None:
    if totals(case.status)["steps"]:
        return None
    since = duration(case.status.seconds)
    return Diagnosis(Level.WAIT, "starting", f"No step is done yet, {since} into the run.")


def _stands_still(case: Case) -> Diagnosis | None:
    recent, window = case.history.recent, case.window
    if window < case.timing.heartbeat * HEARTBEATS or window < 5:
        return None
    if recent[-1].point.steps > recent[0].point.steps:
        return None
    reasons = [
        f"{m.name} is {m.worker.waiting_for}"
        for m in case.busy
        if m.worker and m.worker.waiting_for
    ]
    why = f"; {reasons[0]}" if reasons else ""
    return Diagnosis(Level.WARN, "stalled", f"No step for {duration(window)}{why}.")


def _is_server_bound(case: Case) -> Diagnosis | None:
    queues = {s.shard: s.progress.queue for s in case.status.shards}
    found = busiest(case.history)
    if found is None:
        return None
    shard, share, seconds = found
    longest = max(queues, key=queues.__getitem__, default=shard)
    if share < BUSY_SHARE and queues.get(longest, 0) <= QUEUED:
        return None
    shard = shard if share >= BUSY_SHARE else longest
    words = (
        f"Server-bound: {case.server_of(shard)} holds shard {shard} with {queues.get(shard, 0)} "
        f"pushes queued; the busiest shard applied for {share:.0%} of the last "
        f"{duration(case.window)}, {1000 * seconds:.2f} ms a record. More servers share the work."
    )
    return Diagnosis(Level.WARN, "server-bound", words)


def _has_slow_worker(case: Case) -> Diagnosis | None:
    rates = {m.name: m.worker.rate for m in case.busy if m.worker and m.worker.rate > 0}
    if len(rates) < 2:
        return None
    slow = min(rates, key=rates.__getitem__)
    others = statistics.median(rate for name, rate in rates.items() if name != slow)
    if rates[slow] >= SLOW_SHARE * others:
        return None
    words = (
        f"{slow} is slow: {rates[slow]:.0f} examples/s, while the others' median is {others:.0f}."
    )
    return Diagnosis(Level.WARN, "slow-worker", words)


def _is_hub_bound(case: Case) -> Diagnosis | None:
    share = mean(m.worker.wait_share for m in case.busy if m.worker)
    if share < WAIT_SHARE:
        return None
    words = f"Hub-bound: workers wait for the hub {share:.0%} of their time{_applying(case)}."
    return Diagnosis(Level.WARN, "hub-bound", f"{words} The way between them is what is slow.")


def _is_worker_bound(case: Case) -> Diagnosis:
    busy = [m.worker for m in case.busy if m.worker]
    if not busy:
        words = f"{case.status.state.name.capitalize()}: no worker has reported yet."
        return Diagnosis(Level.WAIT, "starting", words)
    share, rate = mean(w.wait_share for w in busy), sum(w.rate for w in busy)
    words = (
        f"Worker-bound, as it should be: {len(busy)} worker{'s' * (len(busy) > 1)} at "
        f"{rate:.0f} examples/s wait for the hub {share:.0%} of their time{_applying(case)}."
    )
    return Diagnosis(Level.GOOD, "worker-bound", words)


def _applying(case: Case) -> str:
    if (found := busiest(case.history)) is None:
        return ""
    shard, share, seconds = found
    each = f"{share:.0%} of it ({1000 * seconds:.2f} ms a record)"
    return f"; the busiest shard, on {case.server_of(shard)}, applies {each}"


RULES: tuple[Rule, ...] = (
    _is_over,
    _has_silent,
    _is_waiting,
    _has_died,
    _has_no_step,
    _stands_still,
    _is_server_bound,
    _has_slow_worker,
    _is_hub_bound,
    _is_worker_bound,
)
