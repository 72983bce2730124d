"""Settling goes on beside the training, loses nothing, and says what stopped it."""

import threading

import pytest

from hubring_common.errors import LeaseLost
from hubring_common.ids import BatchKey
from hubring_common.messages import Pushed, Span
from hubring_worker.settling import Settler, pushed_as

KEYS = [BatchKey(0, batch) for batch in range(50)]


@pytest.fixture
def stop():
    settlers = []
    yield settlers.append
    for settler in settlers:
        settler.close()


def test_what_gathers_during_a_call_goes_with_the_next(stop):
    calls, go = [], threading.Event()

    def send(news):
        calls.append(news)
        assert go.wait(10)

    settler = Settler(send, pytest.fail)
    stop(settler)
    for seq, key in enumerate(KEYS):
        settler.put(pushed_as([key], seq))
    settler.put(returned=[Span(1, 4, 2)], recall=7)
    go.set()
    settler.flush()
    told = [key for news in calls for pushed in news.done for key in Span.keys(pushed.span)]
    assert told == KEYS
    assert [span for news in calls for span in news.returned] == [Span(1, 4, 2)]
    assert [news.recall for news in calls if news.recall] == [7]
    assert len(calls) <= 3
    assert all(len(news.done) <= 1 for news in calls), "batches in a row are one span"


def test_batches_of_one_push_stay_together():
    (pushed,) = pushed_as(KEYS[:4], 9)
    assert pushed == Pushed(Span(0, 0, 4), 9, together=True)
    assert pushed_as(KEYS[:1], 9) == [Pushed(Span(0, 0, 1), 9)]


def test_what_was_done_by_an_earlier_push_is_told_apart(stop):
    heard, go = [], threading.Event()
    settler = Settler(lambda news: heard.append(news) or go.wait(10), pytest.fail)
    stop(settler)
    settler.put(pushed_as(KEYS[:1], 0))
    settler.put(pushed_as(KEYS[1:2], 1))
    settler.put(pushed_as(KEYS[2:3], 2, confessed=True))
    settler.put(pushed_as(KEYS[3:4], 2))
    go.set()
    settler.flush()
    told = [pushed for news in heard for pushed in news.done]
    assert [pushed.confessed for pushed in told][-2:] == [True, False]
    assert sum(pushed.span.count for pushed in told) == 4


def test_a_flush_with_nothing_to_say_returns():
    settler = Settler(lambda news: None, pytest.fail)
    settler.flush()
    settler.close()


def test_an_error_ends_it_and_is_told_and_no_flush_hangs():
    failures = []

    def refuse(_news):
        raise LeaseLost("not heard of for long")

    settler = Settler(refuse, failures.append)
    settler.put(pushed_as(KEYS, 0))
    settler.flush()
    settler.put(pushed_as(KEYS, 1))
    settler.flush()
    settler._thread.join(5)
    assert [type(failure) for failure in failures] == [LeaseLost]
