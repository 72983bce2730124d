from coordinator.harness import Cluster, keys_of, training

from hubring_common.errors import InvalidMessage, LeaseLost, NotYet, RunEnded, UsageError
from hubring_common.messages import Done, MemberState, RunState, Span, Taken, TakeState
from hubring_coordinator.machine.events import Detached

OVER = Taken(TakeState.OVER)


def span(taken: Taken) -> Span:
    assert taken.state is TakeState.TASK
    return taken.spans[0]


def epoch_counts(cluster: Cluster, epoch: int = 0) -> tuple[int, int, int]:
    (status,) = (e for e in cluster.status.epochs if e.epoch == epoch)
    return status.done, status.leased, status.left


def test_an_epoch_is_shared_out_once_and_is_over():
    cluster, _, (one, two) = training(workers=2, batches=30)
    spans = []
    while (taken := (one, two)[len(spans) % 2].take()).spans:
        spans.append(taken.spans[0])
        (one, two)[(len(spans) - 1) % 2].settle(taken.spans[0])
    assert keys_of(spans) == Span(0, 0, 30).keys()
    assert epoch_counts(cluster) == (30, 0, 0)
    assert two.take() == OVER


def test_epochs_are_taken_one_after_the_other():
    cluster, _, (worker,) = training(batches=12)
    assert sum(s.count for s in worker.train(epoch=0)) == 12
    assert sum(s.count for s in worker.train(epoch=1)) == 12
    assert [e.epoch for e in cluster.status.epochs] == [0, 1]


def test_a_take_whose_answer_was_lost_gets_the_same_task_again():
    cluster, (server,), (one, two) = training(workers=2, batches=30)
    take = one.new_take()
    first = cluster.call(take)
    assert span(two.take()).first == first.spans[0].first + first.spans[0].count
    assert cluster.call(take).spans[0] == first.spans[0]
    cluster.restart()
    for member in (server, one, two):
        member.reattach()
    assert cluster.call(take).spans[0] == first.spans[0]
    assert span(one.take()) != first.spans[0]


def test_a_joiner_finds_finished_epochs_empty():
    _, (server,), (worker,) = training(batches=12)
    worker.train(epoch=0)
    joiner = worker.cluster.worker()
    joiner.declare()
    server.ack()
    assert joiner.take(epoch=0) == OVER
    assert span(joiner.take(epoch=1)) == Span(1, 0, 3)


def test_the_first_push_is_timed():
    cluster, _, (worker,) = training()
    cluster.now += 2.5
    taken = span(worker.take())
    assert cluster.status.first_step_seconds == 0
    worker.settle(taken)
    cluster.now += 1
    worker.beat(pushes=9)
    assert cluster.status.first_step_seconds == 2.5
    assert cluster.status.seconds == 3.5


def test_a_heartbeat_that_shows_a_push_times_it_too():
    cluster, _, (worker,) = training()
    cluster.now += 1.5
    worker.beat(pushes=1)
    assert cluster.status.first_step_seconds == 1.5


def test_a_dead_workers_batches_are_trained_by_the_other():
    cluster, (server,), (one, two) = training(workers=2, batches=8)
    lost = span(one.take())
    mine = two.train()
    cluster.wait(11, beating=[server, two])
    assert cluster.why(one) == "not heard for 10.5 s"
    assert cluster.member_state(one) is MemberState.DEAD
    again = two.train()
    assert sorted(keys_of([*mine, *again])) == Span(0, 0, 8).keys()
    assert lost.count == sum(s.count for s in again)


def test_an_epoch_is_not_over_while_a_silent_worker_holds_batches():
    cluster, (server,), (one, two) = training(workers=2, batches=8)
    held = span(one.take())
    cluster.do(Detached(one.stream))
    two.train()
    call = cluster.last_call
    assert call not in cluster.answers, "parked"
    cluster.wait(0.5, beating=[server, two])
    assert call not in cluster.answers
    cluster.wait(0.5, beating=[server, two])
    words = f"worker-0 (last heard 1 s ago) holds {held.count} batches"
    assert cluster.answers[call] == Taken(TakeState.WAIT, why=words)


def test_a_parked_call_is_answered_when_the_batches_come_back():
    cluster, (server,), (one, two) = training(workers=2, batches=8)
    held = span(one.take())
    cluster.do(Detached(one.stream))
    two.train()
    call = cluster.last_call
    cluster.wait(0.5, beating=[server, two])
    one.settle(returned=[held])
    assert span(cluster.answers[call]) == Span(0, 0, 1)


def test_a_parked_call_is_over_when_the_rest_is_done():
    cluster, _, (one, two) = training(workers=2, batches=8)
    held = span(one.take())
    cluster.do(Detached(one.stream))
    two.train()
    call = cluster.last_call
    one.settle(held)
    assert cluster.answers[call] == OVER


def test_a_parked_call_ends_with_the_run():
    cluster, _, (one, two) = training(workers=2, batches=8)
    one.take()
    cluster.do(Detached(one.stream))
    two.train()
    call = cluster.last_call
    cluster.stop(at_once=True)
    assert isinstance(cluster.answers[call], RunEnded)


def test_a_worker_that_missed_three_heartbeats_is_waited_for_too():
    cluster, (server,), (one, two) = training(workers=2, batches=8)
    one.take()
    cluster.wait(3, beating=[server, two])
    two.train()
    assert cluster.answers[cluster.last_call] == OVER
    cluster.wait(0.5, beating=[server, two])
    assert two.take() is None


def test_a_parked_call_of_a_worker_that_leaves_says_so():
    cluster, _, (one, two) = training(workers=2, batches=8)
    one.take()
    cluster.do(Detached(one.stream))
    two.train()
    call = cluster.last_call
    two.leave()
    assert isinstance(cluster.answers[call], LeaseLost)


def test_an_early_break_leaves_the_rest():
    cluster, _, (worker,) = training(batches=30)
    held = span(worker.take())
    worker.settle(Span(0, 0, 3), returned=[Span(0, 3, 7)])
    assert held.count == 10
    assert epoch_counts(cluster) == (3, 0, 27)
    assert worker.finish() == Done()
    assert cluster.state is RunState.QUIET, "what is left of a broken-off epoch is not owed"


def test_returned_batches_go_to_whoever_is_still_in_the_epoch():
    _, _, (one, two) = training(workers=2, batches=30)
    held = span(one.take())
    one.settle(returned=[held])
    assert span(two.take()).first == held.first


def test_finishing_gives_back_what_is_still_held():
    cluster, _, (one, two) = training(workers=2, batches=30)
    held = span(one.take())
    one.finish()
    assert span(two.take()).first == held.first
    assert isinstance(one.take(), UsageError)
    assert cluster.state is RunState.TRAINING


def test_leaving_gives_back_what_is_still_held():
    _, _, (one, two) = training(workers=2, batches=30)
    held = span(one.take())
    one.leave()
    assert span(two.take()).first == held.first


def test_a_fenced_workers_done_batches_count_and_it_hears_that_it_was_fenced():
    cluster, (server,), (one, two) = training(workers=2, batches=8)
    held = span(one.take())
    cluster.wait(11, beating=[server, two])
    assert isinstance(one.error, LeaseLost)
    assert isinstance(one.settle(held), LeaseLost)
    assert epoch_counts(cluster) == (held.count, 0, 8 - held.count)
    assert span(two.take()).first == held.count


def test_settling_twice_counts_once():
    cluster, _, (worker,) = training(batches=8)
    held = span(worker.take())
    assert worker.settle(held) == Done()
    assert worker.settle(held) == Done()
    assert epoch_counts(cluster)[0] == held.count


def test_who_may_not_take():
    cluster = Cluster()
    worker = cluster.worker()
    assert isinstance(worker.take(), NotYet)
    cluster, (server,), (first,) = training()
    assert isinstance(first.settle(Span(0, 0, 1)), InvalidMessage)
    cluster.wait(11, beating=[server])
    assert isinstance(first.take(), LeaseLost)


def test_data_must_be_declared():
    cluster = Cluster()
    server, worker = cluster.server(), cluster.worker()
    worker.declare()
    server.ack()
    worker.seeded()
    assert isinstance(worker.take(), UsageError)


def test_draining_leases_nothing_more():
    cluster, _, (worker,) = training()
    held = span(worker.take())
    cluster.stop("enough")
    assert worker.take() == OVER
    assert worker.settle(held) == Done()
