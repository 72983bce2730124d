"""The one sentence: the right cause, with its facts, for each case."""

import pytest
from coordinator.statuses import DEAD, FINISHED, server, shard, status, worker
from hypothesis import given
from hypothesis import strategies as st

from hubring_common.messages import MemberState, RunEvent, RunState
from hubring_common.timing import Timing
from hubring_coordinator.page.diagnosis import Level, diagnose, duration
from hubring_coordinator.page.history import History, sample

TIMING = Timing(10)
NONE_YET = {"members": (), "shards": (), "epochs": ()}
STILL = {"members": (server(0), worker(0, waiting_for="waiting 9 s for server-0"))}


def lately(*statuses):
    history = History()
    for each in statuses:
        history.add(sample(each))
    return history


def applying(share, queue=0):
    """Ten seconds in which shard 1 applied for this share of the time."""
    statuses = [
        status(
            seconds=60.0 + at,
            shards=(shard(0), shard(1, applied=20 * at, seconds=share * at, queue=queue)),
            members=(server(0), server(1), worker(0, steps=100 + at), worker(1, wait_share=0.1)),
        )
        for at in range(11)
    ]
    return statuses[-1], lately(*statuses)


@pytest.mark.parametrize(
    ("case", "kind", "level", "words"),
    [
        (
            {"state": RunState.FAILED, "why": "ValueError: bad luck", "who": "worker-1"},
            "failed",
            Level.BAD,
            "Failed after 1 min 0 s by worker-1: ValueError: bad luck (200 steps, 114 examples/s).",
        ),
        (
            {"state": RunState.FAILED, "why": "weights lost: server-0 died", "who": "server-0"},
            "failed",
            Level.BAD,
            "Failed after 1 min 0 s: weights lost: server-0 died (200 steps, 114 examples/s).",
        ),
        (
            {"state": RunState.FINISHED, "seconds": 9.04},
            "finished",
            Level.GOOD,
            "Finished after 9.0 s (200 steps, 1270 examples/s).",
        ),
        (
            {"state": RunState.STOPPED, "why": "asked to stop"},
            "stopped",
            Level.WARN,
            "Stopped after 1 min 0 s: asked to stop (200 steps, 114 examples/s).",
        ),
        (
            {"members": (server(0), worker(0, heard=4.21), worker(1))},
            "silent",
            Level.WARN,
            "worker-0 on alpha is silent: last heard 4.2 s ago; it counts as dead after 10 s.",
        ),
        (
            {"members": (server(0, heard=9.0), worker(0, heard=4.2))},
            "silent",
            Level.WARN,
            (
                "server-0 on beta is silent: last heard 9.0 s ago, and so is 1 other; "
                "it counts as dead after 10 s."
            ),
        ),
        (
            {
                **NONE_YET,
                "state": RunState.FORMING,
                "waiting_for": "waiting 4 s for 1 of 2 servers (server-0 is here)",
            },
            "waiting",
            Level.WAIT,
            "Forming: waiting 4 s for 1 of 2 servers (server-0 is here).",
        ),
        (
            {"state": RunState.DRAINING, "waiting_for": "waiting 2 s for worker-1 to finish"},
            "waiting",
            Level.WAIT,
            "Draining: waiting 2 s for worker-1 to finish.",
        ),
        (
            {
                "members": (server(0), worker(0), worker(1, state=DEAD, heard=99.0)),
                "events": (RunEvent(48.0, "died", "worker-1", "worker-1 is dead: lease ended"),),
            },
            "died",
            Level.WARN,
            "worker-1 is dead: lease ended (12 s ago); 1 worker goes on.",
        ),
        (
            {"members": (server(0), worker(0, steps=0))},
            "starting",
            Level.WAIT,
            "No step is done yet, 1 min 0 s into the run.",
        ),
        (
            {"members": (worker(0, rate=20.0), worker(1, rate=90.0), worker(2, rate=110.0))},
            "slow-worker",
            Level.WARN,
            "worker-0 is slow: 20 examples/s, while the others' median is 100.",
        ),
        (
            {"members": (worker(0, wait_share=0.9), worker(1, wait_share=0.7))},
            "hub-bound",
            Level.WARN,
            (
                "Hub-bound: workers wait for the hub 80% of their time. "
                "The way between them is what is slow."
            ),
        ),
        (
            {"members": (worker(0, wait_share=0.1), worker(1, wait_share=0.2))},
            "worker-bound",
            Level.GOOD,
            (
                "Worker-bound, as it should be: 2 workers at 200 examples/s wait for the hub "
                "15% of their time."
            ),
        ),
    ],
)
def test_each_case(case, kind, level, words):
    found = diagnose(status(**case), History(), TIMING)
    assert (found.kind, found.level, found.words) == (kind, level, words)


@pytest.mark.parametrize(
    ("share", "queue", "kind"),
    [(0.9, 0, "server-bound"), (0.1, 5, "server-bound"), (0.3, 1, "worker-bound")],
)
def test_a_shard_that_applies_all_the_time_or_is_behind_is_named(share, queue, kind):
    found = diagnose(*applying(share, queue), TIMING)
    assert found.kind == kind
    assert f"{share:.0%} of" in found.words and "server-1" in found.words
    assert f"{1000 * share / 20:.2f} ms a record" in found.words


def test_a_run_that_stands_still_says_why():
    statuses = [status(seconds=60.0 + at, **STILL) for at in range(9)]
    found = diagnose(statuses[-1], lately(*statuses), TIMING)
    assert found.kind == "stalled"
    assert found.words == "No step for 8.0 s; worker-0 is waiting 9 s for server-0."
    moving = lately(statuses[0], status(seconds=68.0, members=(worker(0, steps=900),)))
    assert diagnose(statuses[-1], moving, TIMING).kind != "stalled"


def test_an_old_death_is_no_news():
    events = (RunEvent(5.0, "died", "worker-1", "worker-1 is dead"),)
    assert diagnose(status(events=events), History(), TIMING).kind == "worker-bound"


def test_silence_is_measured_by_the_runs_own_timeout():
    members = (server(0), worker(0, heard=4.2))
    assert diagnose(status(members=members), History(), Timing(60)).kind != "silent"


@given(
    st.sampled_from(RunState),
    st.lists(st.sampled_from(MemberState), max_size=4),
    st.floats(0, 1e6),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_status_has_a_diagnosis(state, members, seconds, waits, steps):
    made = tuple(worker(i, state=m, steps=steps, pushes=0) for i, m in enumerate(members))
    words = "waiting 1 s for worker-0" if waits else ""
    given_status = status(state=state, members=made, seconds=seconds, waiting_for=words)
    found = diagnose(given_status, lately(given_status), TIMING)
    assert found.words.endswith(".") and "nan" not in found.words
    assert given_status.state.is_over == (found.kind in {"failed", "finished", "stopped"})


def test_finished_workers_are_nobodys_bottleneck():
    members = (server(0), worker(0), worker(1, state=FINISHED, rate=1.0))
    assert diagnose(status(members=members), History(), TIMING).kind == "worker-bound"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (192, "3 min 12 s"),
        (18_120, "5 h 2 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
