"""Collective evaluation: who is waited for, who measures what, and one result for all."""

import math
import struct
from fractions import Fraction

from coordinator.harness import training
from hypothesis import given
from hypothesis import strategies as st

from hubring_common.errors import LeaseLost, RunEnded, SettingsMismatch, UsageError
from hubring_common.messages import (
    BatchTotals,
    EvaluationPart,
    EvaluationState,
    Formed,
    MemberDrain,
    RunState,
    Total,
)

TASK, DONE, WAIT = EvaluationState.TASK, EvaluationState.DONE, EvaluationState.WAIT


def part(worker, number=1, batches=4, measured=(), **more):
    return EvaluationPart(worker.session, number, batches, {"data": "d"}, tuple(measured), **more)


def came(cluster, worker, number=1, **more):
    """The number of the call."""
    cluster.call(part(worker, number, **more))
    return cluster.last_call


def totals(task, value=1.0):
    batches = range(task.first, task.first + task.count)
    return [BatchTotals(b, {"loss": Total(value * b, 2.0)}) for b in batches]


def measure(cluster, worker, task, number=1):
    """Measure the task and whatever follows. Returns the last answer, None if parked."""
    while task is not None and task.state is TASK:
        task = cluster.call(part(worker, number, measured=totals(task)))
    return task


def test_it_waits_until_every_worker_that_trains_has_come():
    cluster, _, (one, two) = training(workers=2)
    first = came(cluster, one)
    assert first not in cluster.answers
    assert "worker-1 to come to evaluation 1" in cluster.status.waiting_for
    second = came(cluster, two)
    assert cluster.answers[first].state is TASK
    assert cluster.answers[second].state is TASK


def test_all_get_the_same_result_summed_over_every_batch_once():
    cluster, _, (one, two) = training(workers=2)
    first = came(cluster, one)
    second = came(cluster, two)
    measure(cluster, one, cluster.answers[first])
    parked = cluster.last_call
    result = measure(cluster, two, cluster.answers[second])
    assert result.state is DONE
    assert cluster.answers[parked] == result
    assert result.metrics == {"loss": (0 + 1 + 2 + 3) / 8}
    (shown,) = cluster.status.evaluations
    assert (shown.number, shown.done, shown.metrics) == (1, 4, {"loss": 0.75})


def test_a_joiner_gets_the_finished_ones():
    cluster, (server,), (one,) = training()
    measure(cluster, one, cluster.call(part(one)))
    joiner = cluster.worker()
    joiner.declare()
    server.ack()
    assert cluster.call(part(joiner)).metrics == {"loss": 0.75}


def test_a_death_only_moves_its_batches():
    cluster, (server,), (one, two) = training(workers=2)
    first, second = came(cluster, one), came(cluster, two)
    held = cluster.answers[second]
    assert measure(cluster, one, cluster.answers[first]) is None
    parked = cluster.last_call
    two.leave("LeaseLost", "killed")
    moved = cluster.answers[parked]
    assert (moved.first, moved.count) == (held.first, held.count)
    assert measure(cluster, one, moved).metrics == {"loss": 0.75}
    assert server.error is None


def test_a_death_before_it_came_lets_the_others_go_on():
    cluster, _, (one, two) = training(workers=2)
    call = came(cluster, one)
    two.leave("LeaseLost", "killed")
    assert cluster.answers[call].state is TASK


def test_when_all_who_took_part_have_died_it_begins_anew_and_joiners_come_in():
    cluster, (server,), (one,) = training()
    task = cluster.call(part(one))
    cluster.call(part(one, measured=totals(task, value=100.0)))
    one.leave("LeaseLost", "killed")
    joiner = cluster.worker()
    joiner.declare()
    joiner.declare_data(100)
    server.ack()
    assert joiner.last(Formed).seeded, "or nobody would ever train again"
    assert joiner.take().spans
    assert measure(cluster, joiner, cluster.call(part(joiner))).metrics == {"loss": 0.75}


def test_who_has_finished_is_not_waited_for():
    cluster, _, (one, two) = training(workers=2)
    two.finish()
    assert cluster.call(part(one)).state is TASK


def test_a_lost_answer_gets_the_same_task_again():
    cluster, _, (one,) = training()
    task = cluster.call(part(one))
    assert cluster.call(part(one)) == task
    after = cluster.call(part(one, measured=totals(task)))
    assert cluster.call(part(one, measured=totals(task))) == after


def test_who_waits_is_told_for_whom_after_a_heartbeat():
    cluster, (server,), (one, two) = training(workers=2)
    call = came(cluster, one)
    cluster.wait(1.5, beating=[server, one, two])
    assert cluster.answers[call].state is WAIT
    assert cluster.answers[call].why == "worker-1 to come to evaluation 1"


def test_no_joiner_is_let_in_while_the_weights_must_stand_still():
    cluster, (server,), (one,) = training()
    task = cluster.call(part(one))
    joiner = cluster.worker()
    joiner.declare()
    server.ack()
    assert joiner.last(Formed) is None
    measure(cluster, one, task)
    cluster.wait(0.5)
    assert joiner.last(Formed).seeded


def test_other_data_is_refused_by_the_field():
    cluster, _, (one, two) = training(workers=2)
    came(cluster, one)
    other = EvaluationPart(two.session, 1, 4, {"data": "other"})
    refusal = cluster.call(other)
    assert isinstance(refusal, SettingsMismatch)
    assert "data is other here but d" in refusal.fact


def test_an_evaluation_that_nobody_came_to_before_must_be_the_next():
    cluster, _, (one,) = training()
    assert isinstance(cluster.call(part(one, number=2)), UsageError)


def test_a_fenced_worker_is_told_so():
    cluster, (server,), (one, two) = training(workers=2)
    call = came(cluster, one)
    cluster.wait(2, beating=[server, one, two])
    assert cluster.answers[call].state is WAIT
    parked = came(cluster, one)
    one.leave("LeaseLost", "killed")
    assert isinstance(cluster.answers[parked], LeaseLost)
    assert isinstance(cluster.call(part(one)), LeaseLost)


def test_the_end_of_the_run_answers_who_waits():
    cluster, _, (one, two) = training(workers=2)
    call = came(cluster, one)
    cluster.stop(at_once=True)
    assert isinstance(cluster.answers[call], RunEnded)
    assert two.error is None


def test_what_was_measured_outlives_the_coordinator():
    cluster, (server,), (one, two) = training(workers=2)
    first, second = came(cluster, one), came(cluster, two)
    measure(cluster, one, cluster.answers[first])
    cluster.restart()
    for member in (server, one, two):
        member.reattach()
    call = came(cluster, one)
    task = cluster.answers.get(call)
    assert task is not None, "what two held is free again"
    assert task.state is TASK
    assert measure(cluster, one, task).metrics == {"loss": 0.75}
    assert cluster.call(part(two, measured=totals(cluster.answers[second]))).state is DONE


def floats(*numbers):
    return struct.pack(f"<{len(numbers)}d", *numbers)


def test_buffers_come_back_as_their_mean():
    cluster, _, (one, two) = training(workers=2)
    first = came(cluster, one, buffers=floats(1, 10))
    second = came(cluster, two, buffers=floats(3, 30))
    assert cluster.answers[first].buffers == cluster.answers[second].buffers == floats(2, 20)


def test_buffers_of_another_size_are_refused():
    cluster, _, (one, two) = training(workers=2)
    came(cluster, one, buffers=floats(1, 10))
    assert isinstance(cluster.call(part(two, buffers=floats(1))), SettingsMismatch)


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=30), st.randoms())
def test_the_sum_is_exact_whoever_measured_what(values, random):
    cluster, _, (one, two) = training(workers=2)
    batches = len(values)
    answers = {worker: came(cluster, worker, batches=batches) for worker in (one, two)}
    tasks = {worker: cluster.answers.get(call) for worker, call in answers.items()}
    while not any(task and task.state is DONE for task in tasks.values()):
        worker = random.choice([w for w in tasks if tasks[w] and tasks[w].state is TASK])
        span = range(tasks[worker].first, tasks[worker].first + tasks[worker].count)
        measured = [BatchTotals(b, {"x": Total(values[b], 1.0)}) for b in span]
        tasks[worker] = cluster.call(part(worker, batches=batches, measured=measured))
    found = next(t for t in tasks.values() if t and t.state is DONE).metrics["x"]
    exact = float(sum(map(Fraction, values)))
    assert math.isclose(found, exact / batches, rel_tol=1e-15, abs_tol=0)


def test_a_worker_that_drains_still_counts_until_it_left():
    cluster, _, (one, two) = training(workers=2)
    call = came(cluster, one)
    cluster.call(MemberDrain("worker-1", "for repairs"))
    assert call not in cluster.answers
    two.leave()
    assert cluster.answers[call].state is TASK
    assert cluster.state is RunState.TRAINING


def test_a_batch_that_is_not_there_cannot_be_measured():
    cluster, _, (one,) = training()
    cluster.call(part(one))
    refusal = cluster.call(part(one, measured=[BatchTotals(4, {})]))
    assert "batch 4 of 4 was measured" in refusal.fact


def test_no_evaluation_begins_before_the_last_one_is_done():
    cluster, _, (one, two) = training(workers=2)
    came(cluster, one)
    assert isinstance(cluster.call(part(two, number=2)), UsageError)
