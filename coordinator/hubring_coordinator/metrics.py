"""The run's figures for Prometheus, made from a `Status` when they are asked for. Pure.

Labels are roles, states, shards and a bounded number of metrics' names: never members' names,
of which a restart storm makes new ones for ever.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from hubring_common.messages import MemberState, Role, RunState, Status
from hubring_common.report import mean, totals, workers
from hubring_coordinator.page.history import is_live, sample
from hubring_coordinator.page.view import edges, staleness

NAMED = 50
"""Logged and evaluated metrics that get a line of their own."""
NAME = 80
"""Characters of a metric's name that are kept."""

Labelled: TypeAlias = Iterable[tuple[str, float]]


class RunCollector(Collector):
    """`latest`: the newest status; None where there is none yet."""

    def __init__(self, latest: Callable[[], Status | None]) -> None:
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        status = self._latest()
        return iter(()) if status is None else families(status)


def registry(latest: Callable[[], Status | None]) -> CollectorRegistry:
    """A registry of its own: a process may serve several runs one after another."""
    made = CollectorRegistry()
    made.register(RunCollector(latest))
    return made


def families(status: Status) -> Iterator[Metric]:
    return itertools.chain(
        _run(status), _training(status), _members(status), _data(status), _shards(status)
    )


def _run(status: Status) -> Iterator[Metric]:
    info = {"run": status.run, "mode": status.mode}
    yield InfoMetricFamily("hubring_run", "The run and how its workers step.", info)
    states = [(state.name.lower(), float(state is status.state)) for state in RunState]
    yield _gauges("hubring_run_state", "1 for the state that the run is in.", "state", states)
    yield _gauge("hubring_run_seconds", "Seconds since the run began.", status.seconds)
    yield _gauge("hubring_boot_number", "Starts of this run's coordinator.", status.boot)


def _training(status: Status) -> Iterator[Metric]:
    counts, point = totals(status), sample(status).point
    yield _counter("hubring_steps", "Optimizer steps of all workers.", counts["steps"])
    yield _counter("hubring_samples", "Samples that were trained.", counts["samples"])
    yield _counter("hubring_pushes", "Acknowledged pushes, once a shard.", counts["pushes"])
    yield _gauge("hubring_loss", "Mean of the live workers' losses.", point.loss)
    yield _gauge("hubring_examples_per_second", "Of all live workers, lately.", point.rate)
    busy = [m.worker.wait_share for m in workers(status) if is_live(m) and m.worker]
    yield _gauge("hubring_wait_ratio", "Of the workers' time, waiting for the hub.", mean(busy))
    yield _staleness(status)
    yield _gauges("hubring_metric", "What the script logged last.", "name", _named(status.metrics))
    last = next((e.metrics for e in reversed(status.evaluations) if e.seconds), {})
    yield _gauges("hubring_evaluation", "The last evaluation.", "name", _named(last))
    goals = _named({goal.name: goal.reached for goal in status.goals})
    yield _gauges("hubring_goal_reached", "How far a stop rule is.", "goal", goals)


def _staleness(status: Status) -> Metric:
    counts = [float(count) for count in staleness(status)["pushes"]]
    above = [str(edges(number)[1]) for number in range(len(counts))]
    upto = list(itertools.accumulate(counts))
    buckets = [*zip(above, upto, strict=True), ("+Inf", upto[-1] if upto else 0.0)]
    total = sum(m.worker.staleness_sum for m in workers(status) if m.worker)
    words = "Records between a gradient's pull and its push."
    return HistogramMetricFamily("hubring_staleness", words, buckets, float(total))


def _members(status: Status) -> Iterator[Metric]:
    words = "Members by role and state."
    family = GaugeMetricFamily("hubring_members", words, labels=["role", "state"])
    for role, state in itertools.product(Role, MemberState):
        found = sum(m.role is role and m.state is state for m in status.members)
        family.add_metric([role.name.lower(), state.name.lower()], float(found))
    yield family
    ages = [
        (
            role.name.lower(),
            max(
                (m.last_heard for m in status.members if m.role is role and is_live(m)), default=0.0
            ),
        )
        for role in Role
    ]
    yield _gauges(
        "hubring_lease_age_seconds", "Since the most silent live member was heard.", "role", ages
    )


def _data(status: Status) -> Iterator[Metric]:
    sums = [
        (name, float(sum(getattr(epoch, name) for epoch in status.epochs)))
        for name in ("left", "leased", "done")
    ]
    yield _gauges("hubring_batches", "Batches of the epochs that the status lists.", "state", sums)
    done = max(status.epochs_done, totals(status)["epochs"])
    yield _counter("hubring_epochs_done", "Finished epochs.", done)
    aside = float(len(status.set_aside))
    yield _gauge("hubring_batches_set_aside", "Batches left out after several deaths.", aside)


def _shards(status: Status) -> Iterator[Metric]:
    def of(name: str) -> Labelled:
        return [(str(s.shard), float(getattr(s.progress, name))) for s in status.shards]

    yield _gauges("hubring_shard_bytes", "Bytes of weights.", "shard", of("nbytes"))
    yield _gauges("hubring_shard_version", "The weights' version (LSN).", "shard", of("version"))
    yield _gauges("hubring_shard_queue", "Pushes that wait.", "shard", of("queue"))
    counted = {
        "applied": ("applied", "Records that were applied."),
        "apply_seconds": ("apply_seconds", "Seconds spent applying."),
        "duplicates": ("duplicates", "Pushes that came again."),
        "refused": ("refused", "Pushes that were refused."),
    }
    for name, (attribute, words) in counted.items():
        family = CounterMetricFamily(f"hubring_shard_{name}", words, labels=["shard"])
        for shard, value in of(attribute):
            family.add_metric([shard], value)
        yield family


def _named(metrics: Mapping[str, float]) -> Labelled:
    """One line a name: two that are equal once cut would spoil the whole answer."""
    return {name[:NAME]: value for name, value in list(metrics.items())[:NAMED]}.items()


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(name, words, value=value)


def _gauges(name: str, words: str, label: str, values: Labelled) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family
