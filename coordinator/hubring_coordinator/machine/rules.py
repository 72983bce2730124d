"""The rules by which a run ends itself, and whether one of them holds.

A logged metric (the loss) is judged as the heartbeats tell it, and for improvement whenever an
epoch is done; an evaluated one at each evaluation. Where both have a name, the evaluated counts.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hubring_common import plain
from hubring_common.errors import SettingsMismatch, UsageError
from hubring_common.messages import Done, Goal, StopRule, StopRules

KINDS = ("steps", "epochs", "seconds", "reaches", "stalls")


@dataclass(slots=True)
class Watch:
    """One rule, and how far it is. `best` and `since` are of a metric that may stall."""

    rule: StopRule
    best: float | None = None
    since: int = 0
    """Judgements without an improvement."""

    def judge(self, value: float) -> None:
        """One more value of the metric. NaN is no improvement."""
        sign = 1 if self.rule.maximize else -1
        improves = self.best is None or sign * (value - self.best) > self.rule.value
        if math.isfinite(value) and improves:
            self.best, self.since = value, 0
        else:
            self.since += 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at. `seconds` into the run; `latest` value of each metric."""

    steps: int
    epochs: int
    seconds: float
    latest: Mapping[str, float]


class Rules:
    """The run's rules, as plain rows, and whether one of them holds."""

    def __init__(self, row: Any = None) -> None:
        self.by = row["by"] if row else ""
        watches = row["watches"] if row else ()
        self.watches = [plain.load(Watch, watch) for watch in watches]

    def row(self) -> Any:
        return {"by": self.by, "watches": [plain.dump(watch) for watch in self.watches]}

    def declare(self, declared: StopRules, by: str) -> Done:
        """The first worker's rules bind the run, in their order: a script gives one after the
        other, and each worker all that it has given so far. Raises SettingsMismatch for others.
        """
        bound, rules = tuple(watch.rule for watch in self.watches), declared.rules
        common = min(len(bound), len(rules))
        if rules[:common] == bound[:common]:
            for rule in rules[common:]:
                _require_sane(rule)
            self.by = self.by or by
            self.watches += [Watch(rule) for rule in rules[common:]]
        else:
            ours, theirs = _listed(declared.rules), _listed(bound)
            fact = f"the stop rules are {ours} here but {theirs} on the cluster (set by {self.by})"
            raise SettingsMismatch(fact, todo="give every worker of a run the same stop rules")
        return Done()

    @property
    def epochs_end(self) -> int:
        """The first data epoch that the run will not have."""
        ends = (int(w.rule.value) for w in self.watches if w.rule.kind == "epochs")
        return min(ends, default=1 << 62)

    def judge(self, metric: str, value: float) -> bool:
        """A new value of a metric that may stall. Whether any rule looks at it."""
        watches = [w for w in self.watches if (w.rule.kind, w.rule.metric) == ("stalls", metric)]
        for watch in watches:
            watch.judge(value)
        return bool(watches)

    def reason(self, facts: Facts) -> str:
        """Why the run is to end now, or ""."""
        return next((why for watch in self.watches if (why := _why(watch, facts))), "")

    def goals(self, facts: Facts) -> tuple[Goal, ...]:
        return tuple(_goal(watch, facts) for watch in self.watches)


def _require_sane(rule: StopRule) -> None:
    if rule.kind not in KINDS:
        fact = f"a stop rule of kind {rule.kind!r}; there are {', '.join(KINDS)}"
        raise UsageError(fact, todo="use the same hubring everywhere")
    positive = rule.patience if rule.kind == "stalls" else rule.value
    if rule.kind != "reaches" and not positive > 0:
        raise UsageError(f"the stop rule {said(rule)} is not positive", todo="raise it above 0")
    if not math.isfinite(rule.value):
        raise UsageError(f"the stop rule {said(rule)} is not finite", todo="give a finite number")


def said(rule: StopRule) -> str:
    """Such as "accuracy at least 0.98"."""
    if rule.kind == "reaches":
        return f"{rule.metric} at {'least' if rule.maximize else 'most'} {rule.value:g}"
    if rule.kind == "stalls":
        return f"{rule.metric} better by {rule.value:g} within {rule.patience}"
    return f"{rule.kind} {rule.value:g}"


def _listed(rules: Iterable[StopRule]) -> str:
    return " and ".join(map(said, rules)) or "none"


def _why(watch: Watch, facts: Facts) -> str:
    rule = watch.rule
    if rule.kind == "stalls":
        if watch.since < rule.patience:
            return ""
        best = "never finite" if watch.best is None else f"{watch.best:.6g} at best"
        return (
            f"{rule.metric} has not improved by more than {rule.value:g} "
            f"in {watch.since} judgements ({best})"
        )
    reached = _reached(rule, facts)
    if reached is None or not _holds(rule, reached):
        return ""
    return f"{rule.metric or rule.kind} reached {reached:.6g} (wanted: {said(rule)})"


def _reached(rule: StopRule, facts: Facts) -> float | None:
    counts = {"steps": facts.steps, "epochs": facts.epochs, "seconds": facts.seconds}
    return counts[rule.kind] if rule.kind in counts else facts.latest.get(rule.metric)


def _holds(rule: StopRule, reached: float) -> bool:
    at_most = rule.kind == "reaches" and not rule.maximize
    return reached <= rule.value if at_most else reached >= rule.value


def _goal(watch: Watch, facts: Facts) -> Goal:
    rule = watch.rule
    if rule.kind == "stalls":
        return Goal(said(rule), rule.patience, watch.since)
    reached = _reached(rule, facts)
    return Goal(said(rule), rule.value, math.nan if reached is None else reached)
