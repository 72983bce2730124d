import pytest
from coordinator.harness import Cluster, training

from hubring_common.errors import LeaseLost, RunEnded
from hubring_common.messages import (
    Done,
    Drain,
    End,
    Formed,
    Members,
    MemberState,
    Quiet,
    Role,
    RunState,
    Taken,
    TakeState,
)
from hubring_coordinator.machine.chronicle import KEPT
from hubring_coordinator.machine.events import Detached


def quiet_run(workers: int = 2):
    cluster, (server,), crew = training(workers=workers, batches=8)
    for worker in crew:
        worker.train()
        worker.finish()
    assert cluster.state is RunState.QUIET
    return cluster, server, crew


def test_a_run_finishes():
    cluster, server, (chief, other) = quiet_run()
    assert chief.last(Quiet) == Quiet(write_model=True)
    assert other.last(Quiet) == Quiet(write_model=False)
    assert cluster.status.waiting_for == "waiting 0 s for worker-0 to write the model"
    other.leave(metrics={"accuracy": 0.1, "other": 2.0})
    assert cluster.state is RunState.QUIET
    chief.leave(metrics={"accuracy": 0.9}, model="runs/run-1/model.safetensors")
    assert cluster.state is RunState.FINISHED
    (over,) = cluster.overs
    status = over.status
    assert status.metrics == {"accuracy": 0.9, "other": 2.0}
    assert status.model == "runs/run-1/model.safetensors"
    assert server.last(End) == End(RunState.FINISHED)
    assert cluster.exits == 0
    server.detach()
    assert cluster.exits == 1


def test_the_chiefs_metrics_hold_also_when_it_leaves_first():
    cluster, _, (chief, other) = quiet_run()
    chief.leave(metrics={"accuracy": 0.9}, model="m")
    other.leave(metrics={"accuracy": 0.1, "other": 2.0}, model="x")
    assert cluster.status.metrics == {"accuracy": 0.9, "other": 2.0}
    assert cluster.status.model == "m"


def test_the_chief_may_leave_without_a_model():
    cluster, _, (chief,) = quiet_run(workers=1)
    chief.leave()
    assert (cluster.state, cluster.status.model) == (RunState.FINISHED, "")


def test_the_next_writes_the_model_when_the_chief_dies_in_quiet():
    cluster, server, (_, other) = quiet_run()
    cluster.wait(11, beating=[server, other])
    assert other.last(Quiet) == Quiet(write_model=True)
    other.leave(model="m")
    assert (cluster.state, cluster.status.model) == (RunState.FINISHED, "m")


def test_a_result_that_nobody_is_left_to_write_is_a_failure():
    cluster, server, (_, other) = quiet_run()
    other.leave()
    cluster.wait(11, beating=[server])
    status = cluster.status
    assert (status.state, status.kind) == (RunState.FAILED, "TimedOut")
    assert "to write the model" in status.why


def test_a_late_joiner_of_a_quiet_run_is_told_that_it_ended():
    cluster, _, _ = quiet_run()
    assert isinstance(cluster.worker().error, RunEnded)


def test_a_worker_that_still_trains_keeps_the_others_waiting():
    cluster, _, (one, two) = training(workers=2, batches=8)
    one.finish()
    assert cluster.state is RunState.TRAINING
    assert cluster.status.waiting_for == "waiting 0 s for worker-1 to finish"
    two.train()
    two.finish()
    assert cluster.state is RunState.QUIET


def test_a_worker_that_leaves_without_waiting_ends_the_run_too():
    cluster, _, (one, two) = training(workers=2, batches=8)
    one.train()
    one.leave()
    assert cluster.state is RunState.TRAINING
    two.leave(metrics={"loss": 1.0}, model="m")
    status = cluster.status
    assert (status.state, status.model, status.metrics) == (RunState.FINISHED, "m", {"loss": 1.0})


def test_draining_ends_stopped():
    cluster, (server,), (worker,) = training()
    worker.take()
    assert cluster.stop("SIGTERM") == Done()
    assert worker.last(Drain) == Drain("SIGTERM")
    assert cluster.status.waiting_for == "waiting 0 s for worker-0 to finish"
    worker.finish()
    assert worker.last(Quiet).write_model
    worker.leave(model="m")
    assert (cluster.state, cluster.status.why) == (RunState.STOPPED, "SIGTERM")
    assert server.last(End) == End(RunState.STOPPED, "SIGTERM")


def test_stopping_at_once_tells_workers_first_and_servers_when_they_are_gone():
    cluster, (server,), (worker,) = training()
    cluster.stop("SIGINT")
    cluster.stop("SIGINT again", at_once=True)
    assert cluster.state is RunState.STOPPED
    assert worker.last(End) == End(RunState.STOPPED, "SIGINT again")
    assert server.last(End) is None
    worker.detach()
    assert server.last(End) == End(RunState.STOPPED, "SIGINT again")
    server.detach()
    assert cluster.exits == 1


def test_a_run_that_forms_has_nothing_to_drain():
    cluster = Cluster()
    server = cluster.server()
    cluster.stop("SIGTERM")
    assert cluster.state is RunState.STOPPED
    assert server.last(End) == End(RunState.STOPPED, "SIGTERM")


def test_a_stop_of_a_quiet_run_comes_too_late():
    cluster, _, (chief, other) = quiet_run()
    cluster.stop()
    chief.leave()
    other.leave()
    assert cluster.state is RunState.FINISHED


def test_members_that_do_not_go_are_waited_for_two_leases():
    cluster, (server,), (worker,) = training()
    cluster.stop(at_once=True)
    cluster.wait(9.5, beating=[server, worker])
    assert server.last(End) is None
    cluster.wait(0.5, beating=[server, worker])
    assert server.last(End) is not None
    assert cluster.exits == 0
    cluster.wait(10, beating=[server, worker])
    assert cluster.exits == 1
    cluster.wait(10, beating=[server, worker])
    assert cluster.exits == 1


def test_the_first_failure_is_the_runs_with_its_traceback():
    cluster, (server,), (one, two) = training(workers=2)
    one.leave("ScriptFailed", "ValueError: no", traceback="Traceback A")
    two.leave("ScriptFailed", "the run failed", traceback="Traceback B")
    status = cluster.overs[0].status
    assert (status.state, status.who, status.kind) == (
        RunState.FAILED,
        "worker-0",
        "ScriptFailed",
    )
    assert (status.why, status.traceback) == ("ValueError: no", "Traceback A")
    assert cluster.status.traceback == "Traceback A"
    expected = End(RunState.FAILED, "ValueError: no", "worker-0", "ScriptFailed")
    assert two.last(End) == server.last(End) == expected
    assert cluster.why(one) == "ScriptFailed: ValueError: no"


def test_a_worker_that_lost_a_machine_goes_alone_and_its_batches_are_lost():
    cluster, _, (one, two) = training(workers=2, batches=8)
    held = one.take().spans[0]
    one.leave("Unreachable", "server-0: no route")
    assert cluster.state is RunState.TRAINING
    assert cluster.member_state(one) is MemberState.DEAD
    assert sum(s.count for s in two.train()) == 8
    assert held.count == 2


@pytest.mark.parametrize("kind", ["SettingsMismatch", "UsageError", "LeaseLost", "TimedOut"])
def test_a_joiner_that_does_not_fit_only_goes(kind):
    cluster, _, _ = training()
    joiner = cluster.worker()
    joiner.leave(kind, "x")
    assert cluster.state is RunState.TRAINING


def test_an_active_worker_with_the_same_error_fails_the_run():
    cluster, _, (_, worker) = training(workers=2)
    worker.leave("UsageError", "x")
    assert cluster.state is RunState.FAILED


def test_an_unknown_kind_of_error_fails_the_run():
    cluster, _, (worker,) = training()
    worker.leave("FromTheFuture", "x")
    assert (cluster.state, cluster.status.kind) == (RunState.FAILED, "FromTheFuture")


def test_lost_batches_with_only_finished_workers_fail_the_run():
    cluster, (server,), (one, two) = training(workers=2, batches=8)
    one.take()
    cluster.wait(1, beating=[server, one, two])
    two.train()
    two.finish()
    cluster.wait(11, beating=[server, two])
    words = "2 batches of epoch 0 were lost with worker-0 and no worker is left to train them"
    assert words in cluster.status.waiting_for
    cluster.wait(19, beating=[server, two])
    assert cluster.state is RunState.TRAINING
    cluster.wait(1, beating=[server, two])
    status = cluster.status
    assert (status.state, status.kind, status.why) == (RunState.FAILED, "TimedOut", words)


def test_a_restarted_worker_saves_them():
    cluster, (server,), (one, two) = training(workers=2, batches=8)
    one.take()
    two.train()
    two.finish()
    cluster.wait(15, beating=[server, two])
    again = cluster.worker()
    again.declare()
    again.declare_data(8)
    server.ack()
    assert sum(s.count for s in again.train()) == 2
    again.finish()
    assert cluster.state is RunState.QUIET
    assert two.last(Quiet).write_model


def test_no_worker_at_all_fails_the_run_after_two_timeouts():
    cluster, (server,), (worker,) = training()
    cluster.wait(11, beating=[server])
    cluster.wait(19, beating=[server])
    assert cluster.state is RunState.TRAINING
    cluster.wait(2, beating=[server])
    status = cluster.status
    assert status.state is RunState.FAILED
    assert status.why == "no worker is left (worker-0: not heard for 10.5 s)"
    assert status.who == worker.name


def test_drained_batches_of_a_dead_worker_are_not_owed():
    cluster, (server,), (one, two) = training(workers=2)
    one.take()
    cluster.stop()
    cluster.wait(11, beating=[server, two])
    assert two.take() == Taken(TakeState.OVER)
    two.finish()
    assert cluster.state is RunState.QUIET


def test_weights_are_lost_with_their_server():
    cluster, (server,), (worker,) = training()
    server.beat(version=41)
    cluster.wait(10.5, beating=[worker])
    status = cluster.status
    assert (status.state, status.kind, status.who) == (RunState.FAILED, "WeightsLost", "server-0")
    assert status.why == "weights lost at LSN 41: server-0 not heard for 10.5 s"
    assert worker.last(End).kind == "WeightsLost"


def test_a_server_that_comes_back_without_its_memory_fails_the_run_at_once():
    cluster, (server,), (worker,) = training()
    server.beat(version=7)
    server.detach()
    again = cluster.server(0)
    assert cluster.status.why == "weights lost at LSN 7: server-0 came back without its memory"
    worker.detach()
    assert again.last(End).kind == "WeightsLost"


def test_a_server_may_die_once_the_model_is_written():
    cluster, _, (chief, other) = quiet_run()
    chief.leave(model="m")
    cluster.wait(11, beating=[other])
    other.leave()
    assert (cluster.state, cluster.status.model) == (RunState.FINISHED, "m")


def test_calls_after_the_end_are_refused_with_its_reason():
    cluster, _, (one, two) = training(workers=2)
    one.leave("ScriptFailed", "ValueError: no")
    error = two.take()
    assert isinstance(error, RunEnded)
    assert error.fact == "run run-1 is failed: ValueError: no"
    assert error.who == "worker-0"
    assert two.leave() == Done()
    assert isinstance(cluster.worker().error, RunEnded)


def test_who_comes_back_after_the_end_is_told_of_it():
    cluster, _, (worker,) = training()
    cluster.do(Detached(worker.stream))
    cluster.stop("now", at_once=True)
    worker.reattach()
    assert worker.last(End) == End(RunState.STOPPED, "now")


# --- leases --------------------------------------------------------------------------------


def test_a_broken_stream_alone_is_no_death():
    cluster, (server,), (worker,) = training()
    held = worker.take().spans[0]
    cluster.do(Detached(worker.stream))
    cluster.wait(9, beating=[server])
    worker.reattach()
    assert worker.name == "worker-0"
    assert worker.last(Formed).seeded, "what it may have missed is said again"
    worker.settle(held)
    assert cluster.status.epochs[0].done == held.count


def test_calls_renew_the_lease_too():
    cluster, (server,), (worker,) = training()
    for _ in range(5):
        cluster.wait(4, beating=[server])
        worker.take()
    assert cluster.member_state(worker) is MemberState.ACTIVE


def test_a_fenced_worker_hears_lease_lost_and_needs_a_new_session():
    cluster, (server,), (one, two) = training(workers=2)
    cluster.wait(11, beating=[server, two])
    assert isinstance(one.error, LeaseLost)
    one.beat()
    one.reattach()
    assert isinstance(one.error, LeaseLost)
    assert "worker-0 (session 2) is no member any more: not heard for" in one.error.fact
    assert server.last(Members).sessions == (two.session,)


def test_a_coordinator_that_stood_still_blames_nobody():
    cluster, _, (worker,) = training()
    cluster.now += 60
    cluster.wait(0.5)
    assert cluster.member_state(worker) is MemberState.ACTIVE
    assert all(member.last_heard <= 10 for member in cluster.status.members)


def test_a_second_stream_of_a_session_replaces_the_first():
    cluster, _, (worker,) = training()
    first = worker.stream
    worker.reattach()
    assert isinstance(cluster.closed[first], RunEnded)
    cluster.do(Detached(first))
    assert worker.take().spans


def test_a_storm_of_restarts_leaves_a_bounded_state():
    cluster = Cluster(servers=1, forming_timeout=1e6)
    for _ in range(200):
        worker = cluster.worker()
        worker.leave()
        worker.detach()
    assert len(cluster.status.members) < 80
    assert len(cluster.rows) < 80 + KEPT


def test_status_shows_members_and_shards():
    cluster, (server,), (worker,) = training(batches=8)
    server.beat(version=5)
    worker.beat(pushes=3)
    cluster.now += 2
    status = cluster.status
    by_name = {member.name: member for member in status.members}
    assert by_name["server-0"].role is Role.SERVER
    assert by_name["server-0"].state is MemberState.ACTIVE
    assert by_name["worker-0"].worker.pushes == 3
    assert by_name["worker-0"].last_heard == 2
    assert (status.shards[0].server, status.shards[0].progress.version) == ("server-0", 5)
    assert status.waiting_for == ""
