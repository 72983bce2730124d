"""The rules by which a run ends itself."""

import math

import pytest
from coordinator.harness import training
from hypothesis import given
from hypothesis import strategies as st

from hubring_common.errors import SettingsMismatch, UsageError
from hubring_common.messages import (
    BatchTotals,
    Drain,
    EvaluationPart,
    Heartbeat,
    RunState,
    Span,
    StopRule,
    StopRules,
    Total,
    WorkerProgress,
)
from hubring_coordinator.machine import events
from hubring_coordinator.machine.rules import Rules, Watch


def declared(cluster, worker, *rules):
    return cluster.call(StopRules(worker.session, rules))


def evaluate(cluster, worker, number, value, name="accuracy"):
    measured = (BatchTotals(0, {name: Total(value, 1.0)}),)
    return cluster.call(EvaluationPart(worker.session, number, 1, {}, measured))


def tell_loss(cluster, worker, loss):
    cluster.do(events.Beat(worker.stream, Heartbeat(WorkerProgress(loss=loss))))


def test_the_run_has_no_more_than_the_wanted_epochs_and_then_drains():
    cluster, _, (one,) = training(batches=4)
    declared(cluster, one, StopRule("epochs", value=2))
    for epoch in range(4):
        one.train(epoch)
    assert [status.epoch for status in cluster.status.epochs] == [0, 1]
    assert cluster.state is RunState.DRAINING
    assert one.last(Drain).why == "epochs reached 2 (wanted: epochs 2)"


def test_a_run_that_ends_itself_is_finished_and_says_why():
    cluster, _, (one,) = training(batches=4)
    declared(cluster, one, StopRule("epochs", value=1))
    one.train(0)
    one.finish()
    one.leave()
    assert cluster.state is RunState.FINISHED
    assert "epochs reached 1" in cluster.status.why


def test_steps_are_counted_as_they_settle():
    cluster, _, (one,) = training(batches=10)
    declared(cluster, one, StopRule("steps", value=3))
    span = one.take().spans[0]
    one.settle(Span(0, span.first, 2))
    assert cluster.state is RunState.TRAINING
    one.settle(Span(0, span.first + 2, 1))
    assert cluster.state is RunState.DRAINING
    assert cluster.status.goals[0].reached == 3


def test_a_settled_batch_told_twice_is_one_step():
    cluster, _, (one,) = training(batches=10)
    declared(cluster, one, StopRule("steps", value=3))
    one.take()
    for _ in range(5):
        one.settle(Span(0, 0, 2))
    assert cluster.state is RunState.TRAINING


def test_time():
    cluster, (server,), (one,) = training()
    declared(cluster, one, StopRule("seconds", value=5))
    cluster.wait(4, beating=[server, one])
    assert cluster.state is RunState.TRAINING
    cluster.wait(2, beating=[server, one])
    assert cluster.state is RunState.DRAINING


def test_an_evaluated_metric_reaches_a_value():
    cluster, _, (one,) = training()
    declared(cluster, one, StopRule("reaches", "accuracy", 0.9, maximize=True))
    evaluate(cluster, one, 1, 0.8)
    assert cluster.state is RunState.TRAINING
    evaluate(cluster, one, 2, 0.93)
    assert cluster.state is RunState.DRAINING
    assert cluster.status.why == "accuracy reached 0.93 (wanted: accuracy at least 0.9)"


def test_an_evaluated_metric_stalls():
    cluster, _, (one,) = training()
    declared(cluster, one, StopRule("stalls", "loss", 0.01, patience=2))
    for number, value in enumerate([1.0, 0.5, 0.495, 0.48], 1):
        evaluate(cluster, one, number, value, "loss")
        assert cluster.state is RunState.TRAINING
    evaluate(cluster, one, 5, 0.475, "loss")
    evaluate(cluster, one, 6, math.nan, "loss")
    assert cluster.status.why == (
        "loss has not improved by more than 0.01 in 2 judgements (0.48 at best)"
    )


def test_a_logged_loss_reaches_a_value():
    cluster, _, (one,) = training()
    declared(cluster, one, StopRule("reaches", "loss", 0.1))
    tell_loss(cluster, one, math.nan)
    tell_loss(cluster, one, 0.2)
    assert cluster.state is RunState.TRAINING
    tell_loss(cluster, one, 0.05)
    assert cluster.state is RunState.DRAINING


def test_a_logged_loss_is_judged_once_an_epoch_and_only_when_it_was_told_anew():
    cluster, _, (one,) = training(batches=1)
    declared(cluster, one, StopRule("stalls", "loss", 0.0, patience=2))
    for epoch, loss in enumerate([3.0, 3.1, 3.1, 3.1]):
        tell_loss(cluster, one, loss)
        one.train(epoch)
        assert cluster.state is RunState.TRAINING
    tell_loss(cluster, one, 3.2)
    assert cluster.state is RunState.DRAINING


def test_other_rules_are_refused():
    cluster, _, (one, two) = training(workers=2)
    declared(cluster, one, StopRule("epochs", value=3))
    refusal = declared(cluster, two, StopRule("epochs", value=4))
    assert isinstance(refusal, SettingsMismatch)
    assert "epochs 4 here but epochs 3 on the cluster (set by worker-0)" in refusal.fact
    declared(cluster, two, StopRule("epochs", value=3))


@pytest.mark.parametrize(
    "rule",
    [
        StopRule("steps", value=0),
        StopRule("stalls", "loss", 0.1, patience=0),
        StopRule("reaches", "loss", math.inf),
        StopRule("when it is over"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule):
    cluster, _, (one,) = training()
    assert isinstance(declared(cluster, one, rule), UsageError)


def test_the_rules_and_how_far_they_are_outlive_the_coordinator():
    cluster, (server,), (one,) = training()
    declared(cluster, one, StopRule("stalls", "loss", 0.0, patience=2))
    evaluate(cluster, one, 1, 1.0, "loss")
    evaluate(cluster, one, 2, 1.0, "loss")
    cluster.restart()
    server.reattach()
    one.reattach()
    assert cluster.status.goals[0].reached == 1
    evaluate(cluster, one, 3, 1.0, "loss")
    assert cluster.state is RunState.DRAINING


@given(st.lists(st.floats(-10, 10), max_size=30), st.floats(0, 2), st.booleans())
def test_a_watch_agrees_with_a_plain_reading(values, delta, maximize):
    watch = Watch(StopRule("stalls", "m", delta, 5, maximize))
    best, since = None, 0
    for value in values:
        watch.judge(value)
        gain = math.inf if best is None else (value - best if maximize else best - value)
        best, since = (value, 0) if gain > delta else (best, since + 1)
    assert (watch.best, watch.since) == (best, since)


def test_rules_are_plain_rows():
    rules = Rules()
    rules.declare(StopRules(1, (StopRule("epochs", value=3),)), "worker-0")
    again = Rules(rules.row())
    assert (again.by, again.watches) == (rules.by, rules.watches)
    assert again.epochs_end == 3
