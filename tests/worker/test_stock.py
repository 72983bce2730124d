"""The stock of tasks: asked for ahead, recalled, and enough for a coordinator that is away."""

import threading
import time
from collections import deque

import pytest

from hubring_common.errors import LeaseLost
from hubring_common.ids import BatchKey
from hubring_common.messages import Span, Taken, TakeState
from hubring_worker.pace import Pace
from hubring_worker.stock import Stock
from hubring_worker.waits import Waits

OVER = Taken(TakeState.OVER)


def task(*spans):
    """Of epochs that have nothing left for others."""
    return Taken(TakeState.TASK, spans, whole_below=99)


class Coordinator:
    """Answers the needed questions in order and, ahead of need, what `ahead` has."""

    def __init__(self, *needed, ahead=()):
        self.needed, self.ahead = deque(needed), deque(ahead)
        self.asked = []
        self.is_away = False
        self.error = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def ask(self, epoch, ahead, pace):
        self.asked.append((epoch, ahead))
        assert self.may_answer.wait(10)
        if self.error:
            raise self.error
        answers = self.ahead if ahead else self.needed
        return answers.popleft() if answers else OVER

    def alive(self):
        pass


@pytest.fixture
def stock_of():
    made = []

    def make(coordinator):
        stock = Stock(
            coordinator.ask, Waits(), coordinator.alive, lambda: coordinator.is_away, lambda: 0.2
        )
        made.append((stock, coordinator))
        return stock

    yield make
    for stock, coordinator in made:
        stock.close()
        coordinator.may_answer.set()
        stock._thread.join(10)
        assert not stock._thread.is_alive()


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def drain(stock, epoch):
    return [key.batch for key in iter(lambda: stock.take(epoch), None)]


def test_an_epoch_is_handed_out_batch_by_batch(stock_of):
    stock = stock_of(Coordinator(task(Span(0, 0, 2)), task(Span(0, 2, 2))))
    assert drain(stock, 0) == [0, 1, 2, 3]


def test_what_came_ahead_is_handed_out_in_the_order_of_training(stock_of):
    coordinator = Coordinator(
        task(Span(0, 0, 3)), ahead=[task(Span(1, 0, 2), Span(0, 4, 1), Span(0, 2, 1))]
    )
    stock = stock_of(coordinator)
    assert [stock.take(0).batch, stock.take(0).batch] == [0, 1]
    wait_for(lambda: len(stock._spans) > 1)
    assert drain(stock, 0) == [2, 2, 4]
    assert stock.take(1) == BatchKey(1, 0)


def test_a_batch_of_an_earlier_epoch_is_handed_out_too(stock_of):
    stock = stock_of(Coordinator(task(Span(2, 7, 1))))
    assert stock.take(5) == BatchKey(2, 7)


def test_the_last_batches_are_recalled_first(stock_of):
    stock = stock_of(Coordinator(task(Span(0, 0, 4), Span(0, 6, 3), Span(1, 0, 9))))
    assert stock.take(0) == BatchKey(0, 0)
    assert stock.recall(0, 5) == (Span(0, 2, 2), Span(0, 6, 3))
    assert drain(stock, 0) == [1]
    assert stock.recall(0, 5) == ()


def test_later_epochs_are_given_up_but_for_a_fair_share(stock_of):
    stock = stock_of(Coordinator(task(Span(0, 0, 4), Span(1, 0, 5), Span(1, 7, 3), Span(2, 0, 2))))
    stock.take(0)
    assert stock.recall_ahead(1, 4) == (Span(1, 4, 1), Span(1, 7, 3))
    assert drain(stock, 0) == [1, 2, 3]
    assert drain(stock, 1) == [0, 1, 2, 3]


def test_with_the_coordinator_away_training_goes_on_with_later_epochs(stock_of):
    coordinator = Coordinator(task(Span(0, 0, 1), Span(1, 0, 1)))
    stock = stock_of(coordinator)
    assert stock.take(0) == BatchKey(0, 0)
    coordinator.may_answer.clear()
    coordinator.is_away = True
    assert stock.take(0) is None
    assert stock.take(1) == BatchKey(1, 0)


def test_an_epoch_that_has_batches_left_is_not_passed_over(stock_of):
    left = Taken(TakeState.TASK, (Span(0, 0, 1), Span(1, 0, 1)), whole_below=0)
    coordinator = Coordinator(left, task(Span(0, 1, 1)))
    stock = stock_of(coordinator)
    stock.take(0)
    coordinator.may_answer.clear()
    coordinator.is_away = True
    threading.Timer(0.5, coordinator.may_answer.set).start()
    assert stock.take(0) == BatchKey(0, 1), "it waited for the coordinator"


def test_one_that_does_not_answer_counts_as_away(stock_of):
    coordinator = Coordinator(task(Span(0, 0, 1), Span(1, 0, 1)))
    stock = stock_of(coordinator)
    stock.take(0)
    coordinator.may_answer.clear()
    assert stock.take(0) is None


def test_it_asks_ahead_until_there_is_enough_and_then_is_quiet(stock_of):
    plenty = Span(0, 2, 1_000_000_000)
    coordinator = Coordinator(task(Span(0, 0, 2)), ahead=[task(plenty)])
    stock = stock_of(coordinator)
    stock.take(0)
    stock.take(0)
    wait_for(lambda: (0, True) in coordinator.asked)
    for _ in range(50):
        stock.take(0)
    assert coordinator.asked.count((0, True)) == 1


def test_with_an_empty_stock_it_waits_for_the_coordinator(stock_of):
    coordinator = Coordinator(task(Span(0, 0, 1)), task(Span(0, 1, 1)))
    stock = stock_of(coordinator)
    stock.take(0)
    coordinator.may_answer.clear()
    coordinator.is_away = True
    threading.Timer(0.5, coordinator.may_answer.set).start()
    assert stock.take(0) == BatchKey(0, 1)


def test_a_refusal_is_the_training_threads(stock_of):
    coordinator = Coordinator()
    coordinator.error = LeaseLost("fenced")
    with pytest.raises(LeaseLost, match="fenced"):
        stock_of(coordinator).take(0)


def test_nothing_is_handed_out_after_the_close(stock_of):
    stock = stock_of(Coordinator(task(Span(0, 0, 4))))
    stock.take(0)
    stock.close()
    assert stock.take(0) is None


def test_work_is_timed_and_pauses_are_not():
    pace = Pace()
    assert pace.seconds == 0
    for start in range(4):
        pace.began(10.0 * start)
        pace.ended(10.0 * start + 2)
    assert pace.seconds == 2
    pace.began(100)
    pace.paused()
    pace.ended(200)
    assert pace.seconds == 2
