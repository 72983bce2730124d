"""The coordinator is killed and comes back from its rows."""

from coordinator.harness import SPEC, Cluster, keys_of, training

from hubring_common.errors import LeaseLost, ModelMismatch, NotYet
from hubring_common.layout import ModelSpec
from hubring_common.messages import (
    Done,
    Drain,
    Formed,
    Install,
    Members,
    MemberState,
    Quiet,
    RunState,
    Span,
)
from hubring_coordinator.machine.events import Called, Put, Tick


def test_training_goes_on():
    cluster, (server,), (worker,) = training(batches=8)
    held = worker.take().spans[0]
    cluster.restart()
    assert cluster.state is RunState.TRAINING
    server.reattach()
    worker.reattach()
    server.ack()
    assert (server.name, worker.name) == ("server-0", "worker-0")
    assert server.last(Install) is None, "it holds its shard"
    assert server.last(Members).sessions == (worker.session,)
    assert worker.last(Formed).seeded
    worker.settle(held)
    worker.train()
    assert cluster.status.epochs[0].done == 8
    assert cluster.worker().session > worker.session


def test_members_have_one_lease_to_come_back():
    cluster, (server,), (one, two) = training(workers=2)
    one.take()
    cluster.restart()
    server.reattach()
    two.reattach()
    cluster.wait(9.5, beating=[server, two])
    assert cluster.member_state(one) is MemberState.ACTIVE
    cluster.wait(1, beating=[server, two])
    assert cluster.member_state(one) is MemberState.DEAD
    one.reattach()
    assert isinstance(one.error, LeaseLost)


def test_the_bindings_hold():
    cluster, (server,), _ = training()
    cluster.restart()
    server.reattach()
    joiner = cluster.worker()
    assert isinstance(joiner.declare(spec=ModelSpec(SPEC.params, "Adam")), ModelMismatch)
    assert joiner.declare() == Done()


def test_a_restart_while_the_chief_seeds():
    cluster = Cluster()
    server, chief = cluster.server(), cluster.worker()
    chief.declare()
    server.ack()
    cluster.restart()
    assert isinstance(chief.seeded(), NotYet)
    server.reattach()
    server.ack()
    chief.reattach()
    assert chief.last(Formed).seed_them
    assert chief.seeded() == Done()


def test_a_drain_and_a_quiet_are_said_again():
    cluster, (server,), (worker,) = training()
    cluster.stop("enough")
    cluster.restart()
    server.reattach()
    worker.reattach()
    assert worker.last(Drain) == Drain("enough")
    worker.finish()
    cluster.restart()
    worker.reattach()
    assert worker.last(Quiet) == Quiet(write_model=True)
    worker.leave(model="m")
    assert cluster.state is RunState.STOPPED


def test_servers_that_lost_their_memory_meanwhile_are_found_out():
    cluster, (server,), (worker,) = training()
    server.beat(version=30)
    cluster.wait(10, beating=[worker])
    server.beat(version=33)
    cluster.restart()
    cluster.server(0)
    assert cluster.status.kind == "WeightsLost"
    assert "weights lost at LSN 3" in cluster.status.why


def test_time_goes_on_from_what_was_written():
    cluster, _, (worker,) = training()
    cluster.now += 5
    worker.settle(worker.take().spans[0])
    cluster.now += 100
    cluster.restart()
    assert cluster.status.first_step_seconds == 5
    assert cluster.status.seconds == 5


def test_a_kill_between_commit_and_answer_keeps_the_lease():
    cluster, (server,), (one, two) = training(workers=2, batches=8)
    effects = cluster.machine.handle(Called(99, one.new_take()), cluster.now)
    cluster.commit(effects)
    cluster.restart()
    for member in (server, one, two):
        member.reattach()
    server.ack()
    first = two.take().spans[0]
    assert first.first > 0, "what was promised to one, heard or not, is not given to another"
    one.finish()
    assert Span(0, 0, 2).keys()[0] in keys_of(two.train())


def test_a_kill_before_the_commit_promises_nothing():
    cluster, (server,), (one, two) = training(workers=2, batches=8)
    cluster.machine.handle(Called(99, one.new_take()), cluster.now)
    cluster.restart()
    for member in (server, one, two):
        member.reattach()
    assert two.take().spans[0].first == 0


def test_an_empty_store_begins_a_run():
    cluster = Cluster()
    effects = cluster.do(Tick())
    assert {put.kind for put in effects if isinstance(put, Put)} == {"run", "counter"}
