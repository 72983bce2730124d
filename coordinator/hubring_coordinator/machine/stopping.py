"""Watches the run by its rules: one decision for the cluster, recorded with its reason."""

import math

from hubring_common.messages import RunState
from hubring_coordinator.machine.rules import Facts
from hubring_coordinator.machine.state import State

LOGGED = "loss"
"""The metric that workers log with their heartbeats."""


class Stopping:
    def __init__(self, state: State) -> None:
        self._state = state
        self._epochs = state.tasks.done
        self._heard: tuple[float, ...] = ()

    def advance(self) -> None:
        state, run = self._state, self._state.run
        if run.state is not RunState.TRAINING or not state.rules.watches:
            return
        now = facts(state)
        self._judge_logged(now)
        if why := state.rules.reason(now):
            run.state, run.why = RunState.DRAINING, why
            state.touch("run")
            state.note("draining", "", f"run {run.id} ends itself: {why}")

    def _judge_logged(self, now: Facts) -> None:
        """Once an epoch, and only where some worker has told of its loss since the last time."""
        state = self._state
        heard = tuple(w.worker.loss for w in state.roster.workers if w.worker is not None)
        value = now.latest.get(LOGGED)
        is_news = state.tasks.done > self._epochs and heard != self._heard
        if not is_news or value is None or LOGGED in state.evaluations.latest:
            return
        self._epochs, self._heard = state.tasks.done, heard
        if state.rules.judge(LOGGED, value):
            state.touch("rules")


def facts(state: State) -> Facts:
    """Of now, for the rules."""
    losses = [w.worker.loss for w in state.roster.workers if w.worker is not None]
    finite = [loss for loss in losses if math.isfinite(loss)]
    logged = {LOGGED: sum(finite) / len(finite)} if finite else {}
    latest = {**logged, **state.evaluations.latest}
    return Facts(state.run.steps, state.tasks.done, state.elapsed, latest)
