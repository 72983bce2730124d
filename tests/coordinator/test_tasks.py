import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubring_common.errors import InvalidMessage
from hubring_common.messages import Span
from hubring_coordinator.machine.tasks import LONGEST_TASK, Epoch, Tasks, task_length


def make() -> Tasks:
    return Tasks([], lambda number: None)


@given(st.integers(1, 10_000), st.integers(0, 64))
def test_a_task_is_at_most_half_a_share(pool, workers):
    length = task_length(pool, workers)
    assert 1 <= length <= min(LONGEST_TASK, pool)
    assert length == 1 or length - 1 < pool / (2 * max(1, workers))


@given(st.integers(1, 300), st.integers(1, 8))
def test_workers_share_an_epoch_without_gap_or_overlap(batches, workers):
    tasks = make()
    taken = []
    while (span := tasks.take(len(taken) % workers + 1, 0, batches, workers)) is not None:
        taken += span.keys()
    assert taken == Span(0, 0, batches).keys()


def test_tasks_shrink_towards_the_end():
    tasks = make()
    spans = []
    while (span := tasks.take(1, 0, 60, 2)) is not None:
        spans.append(span.count)
    assert spans == [10, 10, 10, 8, 6, 4, 3, 3, 2, 1, 1, 1, 1]


def test_returned_batches_come_before_new_ones():
    tasks = make()
    tasks.take(1, 0, 100, 1)
    tasks.settle(1, [], [Span(0, 4, 3)])
    assert tasks.take(2, 0, 100, 1) == Span(0, 4, 3)
    assert tasks.take(2, 0, 100, 1) == Span(0, 10, 10)


def test_lost_batches_of_earlier_epochs_come_first():
    tasks = make()
    tasks.take(1, 0, 100, 1)
    tasks.settle(1, [Span(0, 0, 6)], [])
    assert tasks.lose(1, "worker-0") == 4
    assert tasks.take(2, 3, 100, 1) == Span(0, 6, 2)
    assert tasks.take(2, 3, 100, 1) == Span(0, 8, 1)


def test_lost_batches_of_a_later_epoch_wait_for_who_gets_there():
    tasks = make()
    tasks.take(1, 5, 100, 1)
    tasks.lose(1, "worker-0")
    assert tasks.take(2, 4, 100, 1) == Span(4, 0, 10)


def test_done_counts_once_also_after_the_lease_was_taken_back():
    tasks = make()
    span = tasks.take(1, 0, 100, 1)
    tasks.lose(1, "worker-0")
    again = tasks.take(2, 0, 100, 1)
    tasks.settle(1, [span], [])
    tasks.settle(1, [span], [])
    tasks.settle(2, [again], [])
    (status,) = tasks.status()
    assert (status.done, status.leased, status.left) == (10, 0, 90)


def test_what_is_not_held_cannot_be_returned():
    tasks = make()
    tasks.take(1, 0, 100, 1)
    tasks.settle(2, [], [Span(0, 0, 10)])
    assert tasks.holders(0) == {1: 10}


@pytest.mark.parametrize("span", [Span(0, 5, 10), Span(1, 0, 1), Span(0, 0, 0), Span(0, 95, 10)])
def test_batches_that_were_never_leased_are_refused_and_change_nothing(span):
    tasks = make()
    tasks.take(1, 0, 100, 1)
    before = tasks.status()
    with pytest.raises(InvalidMessage, match="were never leased"):
        tasks.settle(1, [Span(0, 0, 1), span], [])
    assert tasks.status() == before


def test_an_epoch_survives_as_a_row():
    tasks = make()
    tasks.take(1, 0, 50, 1)
    tasks.take(2, 0, 50, 1)
    tasks.settle(1, [Span(0, 2, 3)], [Span(0, 7, 1)])
    tasks.lose(2, "worker-1")
    epoch = tasks.epochs[0]
    assert Epoch.from_row(0, epoch.row()) == epoch


def test_a_million_batches_stay_small():
    tasks = make()
    for _ in range(1000):
        span = tasks.take(1, 0, 1_000_000, 1)
        tasks.settle(1, [span], [])
    assert len(str(tasks.epochs[0].row())) < 200
