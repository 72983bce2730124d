"""The view: bounded, strict JSON, and right where it computes."""

import json
import math

import pytest
from coordinator.statuses import DEAD, eventful, server, status, worker
from hypothesis import given
from hypothesis import strategies as st

from hubring_common.messages import EpochStatus, Goal, RunEvent, RunState
from hubring_common.timing import Timing
from hubring_coordinator.page import view as v
from hubring_coordinator.page.history import History, sample
from hubring_coordinator.page.view import bucket, edges, eta, staleness, view

TIMING = Timing(10)


def shown(given_status):
    history = History()
    history.add(sample(given_status))
    return view(given_status, history, TIMING)


def test_it_is_strict_json_and_says_what_the_status_says():
    found = shown(eventful())
    json.dumps(found, allow_nan=False)
    assert (found["run"], found["state"], found["is_over"]) == ("r1", "training", False)
    assert found["live"] == {"worker": 3, "server": 2}
    assert found["steps"] == 12_020
    assert found["first_error"]["text"] == "worker-2 is dead: its lease ended"
    assert [m["state"] for m in found["members"]][-1] == "dead"
    assert found["goals"][0]["share"] == 0.6 and found["goals"][1]["share"] is None


def test_numbers_that_are_none_are_null():
    found = shown(status(metrics={"loss": math.nan}, members=(worker(0, loss=math.inf),)))
    assert found["metrics"] == {"loss": None}
    assert found["loss"] is None and found["members"][0]["loss"] is None


def test_nothing_grows_without_bound():
    word = "x" * 100_000
    events = tuple(RunEvent(float(n), "died", word, word) for n in range(2000))
    members = tuple(worker(n, state=DEAD, why=word) for n in range(3000))
    epochs = tuple(EpochStatus(n, 5, 1, 2, 2) for n in range(5000))
    metrics = {f"{n}{word}": 1.0 for n in range(200)}
    big = status(
        members=(*members, worker(9000)),
        events=events,
        epochs=epochs,
        metrics=metrics,
        traceback=word,
        why=word,
        goals=tuple(Goal(word, 1, 1) for _ in range(100)),
    )
    found = shown(big)
    assert len(json.dumps(found)) < 3_000_000
    assert len(found["members"]) == v.MEMBERS and found["members_left_out"] == 3001 - v.MEMBERS
    assert found["members"][0]["name"] == "worker-9000", "live ones first"
    assert len(found["events"]) == v.EVENTS and len(found["data"]["epochs"]) == v.EPOCHS
    assert found["data"]["epochs_left_out"] == 5000 - v.EPOCHS


def test_epochs_that_go_on_are_shown_and_few_of_those_that_are_done():
    done = tuple(EpochStatus(n, 4, 4, 0, 0) for n in range(900))
    going = (EpochStatus(900, 4, 3, 1, 0), EpochStatus(901, 4, 0, 0, 4))
    found = shown(status(epochs=(*done, *going), epochs_done=900))["data"]
    assert [e["epoch"] for e in found["epochs"]] == [896, 897, 898, 899, 900, 901]
    assert (found["epochs_done"], found["epochs_left_out"]) == (900, 896)


@pytest.mark.parametrize(
    ("goals", "left"),
    [
        ((), None),
        ((Goal("steps 400", 400, 200),), (56.0, "steps 400")),
        ((Goal("seconds 90", 90, 60),), (30.0, "seconds 90")),
        ((Goal("epochs 4", 4, 1), Goal("steps 400", 400, 200)), (56.0, "steps 400")),
        ((Goal("accuracy at least 0.9", 0.9, 0.8),), None),
        ((Goal("steps at least 9", 9, 8),), None),
        ((Goal("steps 400", 400, 0),), None),
        ((Goal("steps 400", 400, 500),), (0.0, "steps 400")),
        ((Goal("steps 400", 400, math.nan),), None),
    ],
)
def test_the_time_that_is_left(goals, left):
    found = eta(status(goals=goals))
    assert found == (left and {"seconds": pytest.approx(left[0]), "goal": left[1]})
    assert eta(status(goals=goals, state=RunState.FINISHED)) is None


@given(st.integers(0, 1 << 40))
def test_every_staleness_has_one_bucket(stale):
    number = stale.bit_length()
    low, high = edges(number)
    assert low <= stale <= high


def test_the_histogram_is_the_sum_over_the_workers():
    members = (server(0), worker(0, staleness=(1, 2, 3)), worker(1, staleness=(10,)), worker(2))
    found = staleness(status(members=members))
    assert found == {"buckets": ["0", "1", "2-3"], "pushes": [11, 2, 3]}
    assert [bucket(n) for n in range(5)] == ["0", "1", "2-3", "4-7", "8-15"]
    assert staleness(status(members=())) == {"buckets": [], "pushes": []}


def test_an_event_has_the_step_at_which_it_was():
    history = History()
    for at in range(1, 61):
        history.add(sample(status(seconds=float(at), members=(worker(0, steps=10 * at),))))
    events = (RunEvent(30.0, "joined", "worker-1", "worker-1 joined"),)
    found = view(status(events=events, members=(worker(0, steps=600),)), history, TIMING)
    assert found["events"][0]["steps"] == 300
