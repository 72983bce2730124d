"""Settling goes on beside the training, loses nothing, and says what stopped it."""

import threading

import pytest

from hubring_common.errors import LeaseLost
from hubring_common.ids import BatchKey
from hubring_worker.settling import Settler

KEYS = [BatchKey(0, batch) for batch in range(50)]


@pytest.fixture
def stop():
    settlers = []
    yield settlers.append
    for settler in settlers:
        settler.close()


def test_what_gathers_during_a_call_goes_with_the_next(stop):
    calls, go = [], threading.Event()

    def send(done, returned):
        calls.append((sorted(done), sorted(returned)))
        assert go.wait(10)

    settler = Settler(send, pytest.fail)
    stop(settler)
    settler.put(KEYS[:1], [])
    for key in KEYS[1:]:
        settler.put([key], [])
    settler.put([], KEYS[:2])
    go.set()
    settler.flush()
    assert sorted(key for done, _ in calls for key in done) == KEYS
    assert [key for _, returned in calls for key in returned] == KEYS[:2]
    assert len(calls) <= 3


def test_a_flush_with_nothing_to_say_returns():
    settler = Settler(lambda done, returned: None, pytest.fail)
    settler.flush()
    settler.close()


def test_an_error_ends_it_and_is_told_and_no_flush_hangs():
    failures = []

    def refuse(_done, _returned):
        raise LeaseLost("not heard of for long")

    settler = Settler(refuse, failures.append)
    settler.put(KEYS, [])
    settler.flush()
    settler.put(KEYS, [])
    settler.flush()
    settler._thread.join(5)
    assert [type(failure) for failure in failures] == [LeaseLost]
