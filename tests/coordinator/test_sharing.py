"""Who has nothing to do gets a part of what another has not begun."""

import pytest
from coordinator.harness import training

from hubring_common.messages import LedgerRequest, MemberDrain, Recall, Span, TakeState


@pytest.fixture
def two():
    """Each holds half of an epoch of 40 batches."""
    cluster, _, (one, other) = training(workers=2, batches=40)
    one.take(pace=0.1)
    one.take(pace=0.1, ahead=True)
    other.take(pace=0.1, ahead=True)
    return cluster, one, other


def held(cluster, member, epoch=0):
    return cluster.machine._state.tasks.holders_in(epoch).get(member.session, 0)


def recall_of(member):
    return member.last(Recall)


def test_the_one_with_the_most_is_asked_for_what_evens_it_out(two):
    cluster, one, other = two
    other.settle(Span(0, 20, 20))
    assert held(cluster, one) == 20
    assert other.take(pace=0.1) is None, "parked"
    assert recall_of(one) == Recall(1, 0, 10)


def test_a_slow_holder_is_asked_for_more(two):
    _, one, other = two
    other.settle(Span(0, 20, 20))
    one.take(1, pace=0.3, ahead=True)
    other.take(pace=0.1)
    assert recall_of(one).count == 15


def test_what_is_given_back_goes_to_who_asked(two):
    cluster, one, other = two
    other.settle(Span(0, 20, 20))
    other.take(pace=0.1)
    call = cluster.last_call
    one.settle(returned=[Span(0, 10, 10)], recall=recall_of(one).recall)
    assert cluster.answers[call].spans[0].first == 10
    assert held(cluster, one) == 10


def test_one_that_has_begun_all_of_it_is_not_asked_again(two):
    cluster, one, other = two
    other.settle(Span(0, 20, 20))
    other.take(pace=0.1)
    call = cluster.last_call
    one.settle(recall=recall_of(one).recall)
    assert cluster.answers[call].state is TakeState.OVER
    assert other.take(pace=0.1).state is TakeState.OVER
    one.settle(Span(0, 0, 1))
    assert other.take(pace=0.1) is None, "it holds less now: some may be free"


def test_little_work_is_not_worth_the_asking(two):
    cluster, one, other = two
    other.settle(Span(0, 20, 20))
    one.settle(Span(0, 0, 18))
    one.take(1, pace=0.01, ahead=True)
    assert held(cluster, one) == 2
    assert other.take(pace=0.01).state is TakeState.OVER


def test_but_who_has_not_come_to_that_epoch_is_asked_for_little_too(two):
    cluster, one, other = two
    one.take(1, pace=0.001, ahead=True)
    mine = held(cluster, one, 1)
    other.take(1, pace=0.001, ahead=True)
    other.settle(Span(0, 20, 20), *[Span(1, 20, 20)])
    assert mine == 20
    assert other.take(1, pace=0.001) is None
    assert recall_of(one) == Recall(1, 1, 10)


def test_a_recall_is_sent_again_on_a_new_stream(two):
    _, one, other = two
    other.settle(Span(0, 20, 20))
    other.take(pace=0.1)
    one.detach()
    one.reattach()
    assert recall_of(one).recall == 2


def test_a_holder_that_died_gives_all_of_it_back(two):
    cluster, one, other = two
    other.settle(Span(0, 20, 20))
    other.take(pace=0.1)
    call = cluster.last_call
    one.leave("LeaseLost", "out of memory")
    assert cluster.answers[call].spans == (Span(0, 0, 1),)


def test_the_ledger_says_who_when_and_with_which_push(two):
    cluster, one, other = two
    cluster.now = 3.0
    one.settle(Span(0, 0, 2))
    cluster.now = 5.0
    other.settle(Span(0, 20, 1))
    book = cluster.call(LedgerRequest(0))
    first, second = book.entries
    assert (first.first, first.count, first.worker, first.done) == (0, 2, "worker-0", 3.0)
    assert (second.first, second.count, second.worker, second.done) == (20, 1, "worker-1", 5.0)
    assert book.missing == (Span(0, 2, 18), Span(0, 21, 19))


def test_the_ledger_of_a_dead_workers_batches_names_who_trained_them():
    cluster, (server,), (one, other) = training(workers=2, batches=2)
    span = one.take().spans[0]
    cluster.wait(11, beating=[server, other])
    while (taken := other.take()) and taken.spans:
        other.settle(*taken.spans)
    one.settle(span)
    assert {entry.worker for entry in cluster.call(LedgerRequest(0)).entries} == {"worker-1"}


def test_an_epoch_that_nobody_began_has_an_empty_ledger():
    cluster, _, _ = training()
    assert cluster.call(LedgerRequest(7)).batches == 100


def test_a_late_worker_gets_its_part_of_the_epochs_to_come():
    cluster, (server,), (one,) = training(batches=20)
    one.take(pace=0.1)
    one.take(pace=0.1, ahead=True)
    assert held(cluster, one, 5) == 20
    joiner = cluster.worker()
    joiner.declare()
    server.ack()
    assert joiner.take(pace=0.1, ahead=True).state is TakeState.WAIT
    recall = recall_of(one)
    assert (recall.epoch, recall.keep) == (1, 10)
    back = [Span(n, 10, 10) for n in range(1, 200) if held(cluster, one, n) == 20]
    one.settle(returned=back, recall=recall.recall)
    joiner.take(pace=0.1, ahead=True)
    assert held(cluster, joiner, 5) == 10
    assert joiner.take(pace=0.1, ahead=True).state is TakeState.OVER
    assert recall_of(one) == recall, "they are even now"


def test_what_a_worker_that_leaves_alone_holds_must_be_trained_by_others():
    cluster, _, (one, other) = training(workers=2, batches=20)
    held_by_one = one.take().spans[0]
    other.train(0)
    assert other.take(1).spans
    cluster.call(MemberDrain("worker-0", "scaled away"))
    one.leave()
    got = other.take(1).spans
    assert got[0].epoch == 0 and got[0].first == held_by_one.first, "the other had passed it"
    assert cluster.status.set_aside == ()
