import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubring_common.errors import InvalidMessage
from hubring_common.messages import Span
from hubring_coordinator.machine.epoch import Epoch
from hubring_coordinator.machine.tasks import FIRST_TASK, Tasks, Wish, task_length


def make() -> Tasks:
    return Tasks([], lambda number: None)


def take(tasks, session, epoch, batches, workers):
    return tasks.take(Wish(session, epoch, batches, workers, 0.0))


@given(st.integers(1, 10_000), st.integers(0, 64))
def test_a_task_is_at_most_half_a_share(pool, workers):
    length = task_length(pool, workers)
    assert 1 <= length <= min(FIRST_TASK, pool)
    assert length == 1 or length - 1 < pool / (2 * max(1, workers))


@given(st.integers(1, 300), st.integers(1, 8))
def test_workers_share_an_epoch_without_gap_or_overlap(batches, workers):
    tasks = make()
    taken = []
    while (span := take(tasks, len(taken) % workers + 1, 0, batches, workers)) is not None:
        taken += span.keys()
    assert taken == Span(0, 0, batches).keys()


def test_tasks_shrink_towards_the_end():
    tasks = make()
    spans = []
    while (span := take(tasks, 1, 0, 60, 2)) is not None:
        spans.append(span.count)
    assert spans == [10, 10, 10, 8, 6, 4, 3, 3, 2, 1, 1, 1, 1]


def test_returned_batches_come_before_new_ones():
    tasks = make()
    take(tasks, 1, 0, 100, 1)
    tasks.settle(1, [], [Span(0, 4, 3)], 0.0)
    assert take(tasks, 2, 0, 100, 1) == Span(0, 4, 3)
    assert take(tasks, 2, 0, 100, 1) == Span(0, 10, 10)


def test_lost_batches_of_earlier_epochs_come_first():
    tasks = make()
    take(tasks, 1, 0, 100, 1)
    tasks.settle(1, [Span(0, 0, 6)], [], 0.0)
    assert tasks.lose(1, "worker-0") == 4
    assert take(tasks, 2, 3, 100, 1) == Span(0, 6, 1), "one at a time: one of them may be deadly"
    assert take(tasks, 2, 3, 100, 1) == Span(0, 7, 1)


def test_lost_batches_of_a_later_epoch_wait_for_who_gets_there():
    tasks = make()
    take(tasks, 1, 5, 100, 1)
    tasks.lose(1, "worker-0")
    assert take(tasks, 2, 4, 100, 1) == Span(4, 0, 10)


def test_done_counts_once_also_after_the_lease_was_taken_back():
    tasks = make()
    span = take(tasks, 1, 0, 100, 1)
    tasks.lose(1, "worker-0")
    again = take(tasks, 2, 0, 100, 1)
    tasks.settle(1, [span], [], 0.0)
    tasks.settle(1, [span], [], 0.0)
    tasks.settle(2, [again], [], 0.0)
    (status,) = tasks.status()
    assert (status.done, status.leased, status.left) == (10, 0, 90)


def test_what_is_not_held_cannot_be_returned():
    tasks = make()
    take(tasks, 1, 0, 100, 1)
    tasks.settle(2, [], [Span(0, 0, 10)], 0.0)
    assert tasks.holders(0) == {1: 10}


@pytest.mark.parametrize("span", [Span(0, 5, 10), Span(1, 0, 1), Span(0, 0, 0), Span(0, 95, 10)])
def test_batches_that_were_never_leased_are_refused_and_change_nothing(span):
    tasks = make()
    take(tasks, 1, 0, 100, 1)
    before = tasks.status()
    with pytest.raises(InvalidMessage, match="were never leased"):
        tasks.settle(1, [Span(0, 0, 1), span], [], 0.0)
    assert tasks.status() == before


def test_an_epoch_survives_as_a_row():
    tasks = make()
    take(tasks, 1, 0, 50, 1)
    take(tasks, 2, 0, 50, 1)
    tasks.settle(1, [Span(0, 2, 3)], [Span(0, 7, 1)], 0.0)
    tasks.lose(2, "worker-1")
    epoch = tasks.epochs[0]
    assert Epoch.from_row(0, epoch.row()) == epoch


def test_a_million_batches_stay_small():
    tasks = make()
    for _ in range(1000):
        span = take(tasks, 1, 0, 1_000_000, 1)
        tasks.settle(1, [span], [], 0.0)
    assert len(str(tasks.epochs[0].row())) < 200


def ahead(tasks, session, batches, workers, **wish):
    return tasks.take_ahead(Wish(session, 0, batches, workers, 0.0, **wish))


def test_a_task_is_two_seconds_of_work():
    assert task_length(10_000, 1, pace=0.1) == 20
    assert task_length(10_000, 1, pace=5.0) == 1
    assert task_length(30, 2, pace=0.001) == 8, "and half of a share at most"


def test_a_worker_holds_two_minutes_of_work_and_its_share_of_each_epoch():
    tasks = make()
    spans = ahead(tasks, 1, 80, 2, pace=1.0)
    assert sum(span.count for span in spans) == 120
    held = {span.epoch: tasks.holders_in(span.epoch)[1] for span in spans}
    assert held == {0: 80, 1: 40}, "all of the first: others may recall it"
    assert max(span.count for span in spans) == 2
    assert sum(span.count for span in ahead(tasks, 2, 80, 2, pace=1.0)) == 120
    assert tasks.holders_in(1) == {1: 40, 2: 40}
    assert ahead(tasks, 1, 80, 2, pace=1.0) == ()


def test_a_quarter_of_many_epochs_is_not_enough_when_the_others_have_left():
    tasks = make()
    for session in range(1, 5):
        ahead(tasks, session, 8, 4, pace=1.0)
    for session in range(2, 5):
        tasks.release(session)
    assert tasks.whole_below(0) == 1
    ahead(tasks, 1, 8, 1, pace=1.0)
    assert tasks.whole_below(0) == 15, "two minutes of epochs of 8 s"


def test_nothing_is_held_of_epochs_that_the_run_will_not_have():
    tasks = make()
    spans = ahead(tasks, 1, 10, 1, pace=0.01, end=3)
    assert [span.epoch for span in spans] == [0, 1, 2]
    assert tasks.take(Wish(2, 3, 10, 1, 0.0, end=3)) is None


def test_a_worker_whose_speed_is_not_known_holds_nothing_ahead():
    assert ahead(make(), 1, 40, 1, pace=0.0) == ()


def test_a_batch_that_kills_three_workers_is_set_aside_and_no_other():
    tasks, deadly = make(), 3
    deaths = 0
    for session in range(1, 200):
        span = take(tasks, session, 0, 20, 1)
        while span is not None and deadly not in range(span.first, span.first + span.count):
            tasks.settle(session, [span], [], 0.0)
            span = take(tasks, session, 0, 20, 1)
        if span is None:
            break
        deaths += 1
        tasks.lose(session, f"worker-{deaths}")
        tasks.check()
    assert deaths == 3
    (aside,) = tasks.set_aside()
    assert (aside.epoch, aside.batch) == (0, deadly)
    assert aside.workers == ("worker-1", "worker-2", "worker-3")
    assert tasks.done == 1
    (status,) = tasks.status()
    assert (status.done, status.leased, status.left) == (19, 0, 0)


def test_who_holds_a_batch_on_probation_gets_nothing_ahead():
    tasks = make()
    take(tasks, 1, 0, 4, 1)
    tasks.lose(1, "worker-0")
    assert take(tasks, 2, 0, 4, 1).count == 1
    assert ahead(tasks, 2, 4, 1, pace=0.1) == ()


def test_a_set_aside_batch_that_was_done_after_all_is_done():
    tasks = make()
    for session in (1, 2, 3):
        span = take(tasks, session, 0, 1, 1)
        tasks.lose(session, "worker")
    assert tasks.set_aside()
    tasks.settle(1, [span], [], 0.0)
    tasks.check()
    assert tasks.set_aside() == ()
    assert tasks.done == 1


def test_what_was_only_held_ahead_is_not_lost_with_a_worker():
    """Perhaps the script has no such epoch, and nobody would ever train it."""
    tasks = make()
    take(tasks, 1, 0, 10, 1)
    ahead(tasks, 1, 10, 1, pace=0.1)
    assert tasks.holders_in(1)
    assert tasks.lose(1, "worker-0") == 10, "those of epoch 0"
    assert tasks.first_lost().number == 0
    assert not tasks.epochs[1].lost
    assert take(tasks, 2, 1, 10, 1).epoch == 0


def test_epochs_that_are_only_held_ahead_are_not_shown():
    tasks = make()
    ahead(tasks, 1, 10, 1, pace=0.1)
    assert [status.epoch for status in tasks.status()] == [0]
    tasks.settle(1, [Span(1, 0, 1)], [], 0.0)
    assert [status.epoch for status in tasks.status()] == [0, 1]


@given(st.data())
def test_rows_give_the_same_epochs_back(data):
    tasks = make()
    for session in range(1, 6):
        take(tasks, session, data.draw(st.integers(0, 2)), 12, 1)
        if data.draw(st.booleans()):
            tasks.lose(session, f"worker-{session}")
    again = {n: Epoch.from_row(n, epoch.row()) for n, epoch in tasks.epochs.items()}
    assert again == tasks.epochs


def test_epochs_are_whole_until_one_has_batches_that_nobody_holds():
    tasks = make()
    assert tasks.whole_below(0) == 0
    ahead(tasks, 1, 10, 2, pace=4.0)
    assert tasks.whole_below(0) == 1, "the other's half is left of the next ones"
    ahead(tasks, 2, 10, 2, pace=4.0)
    assert tasks.whole_below(0) == 5
    assert tasks.whole_below(3) == 5
    tasks.settle(1, [], [Span(2, 0, 1)], 0.0)
    assert tasks.whole_below(0) == 2
