import pytest
from coordinator.harness import SPEC, Cluster, training

from hubring_common.errors import (
    InvalidMessage,
    LeaseLost,
    ModelMismatch,
    NotYet,
    RunEnded,
    SettingsMismatch,
    UsageError,
    VersionMismatch,
)
from hubring_common.layout import ModelSpec, ParamSpec
from hubring_common.messages import (
    Done,
    Formed,
    Install,
    Members,
    MemberState,
    Role,
    RunState,
    ShardPlace,
    Welcome,
)
from hubring_coordinator.machine.events import OrderAcked

NARROW = ModelSpec((ParamSpec("fc.weight", (10, 512), (512, 1), "float32", 0),), "SGD")


def test_a_run_forms():
    cluster = Cluster(servers=2, seed=7, run_dir="runs/run-1")
    late, first = cluster.server(slot=1), cluster.server(slot=0)
    worker = cluster.worker(host="box", pid=12)
    assert worker.heard == [
        Welcome(3, "worker-0", "run-1", "async", 7, 2, timeout=10.0, run_dir="runs/run-1")
    ]
    assert cluster.status.waiting_for == "waiting 0 s for worker-0 to declare a model"
    assert worker.declare() == Done()
    assert first.heard[1:] == [Install(1, 0, 2, SPEC), Members(2, 1, (3,))]
    assert late.heard[1:] == [Install(1, 1, 2, SPEC), Members(2, 1, (3,))]
    first.ack()
    assert cluster.status.waiting_for == "waiting 0 s for server-1 to take its shard"
    assert worker.last(Formed) is None
    late.ack()
    places = (
        ShardPlace(0, "server-0", ("grpc:server-0:1",)),
        ShardPlace(1, "server-1", ("grpc:server-1:1",)),
    )
    assert worker.heard[1:] == [Formed(1, places, seeded=False, seed_them=True)]
    assert cluster.status.waiting_for == "waiting 0 s for worker-0 to send the first weights"
    assert worker.seeded() == Done()
    assert worker.heard[2:] == [Formed(1, places, seeded=True, seed_them=False)]
    assert cluster.state is RunState.TRAINING
    assert cluster.member_state(worker) is MemberState.ACTIVE


def test_a_worker_hears_formed_only_when_every_server_admitted_it():
    cluster, (one, two), _ = training(servers=2)
    joiner = cluster.worker()
    joiner.declare()
    assert one.last(Members).sessions == (3, joiner.session)
    one.ack()
    assert joiner.last(Formed) is None
    two.ack()
    formed = joiner.last(Formed)
    assert (formed.view, formed.seeded, formed.seed_them) == (2, True, False)


def test_an_old_views_acknowledgement_admits_no_one_new():
    cluster, (server,), _ = training()
    joiner = cluster.worker()
    joiner.declare()
    cluster.do(OrderAcked(server.stream, 2))
    assert joiner.last(Formed) is None
    cluster.do(OrderAcked(server.stream, 3))
    assert joiner.last(Formed).view == 2


def test_a_server_without_its_shard_admits_no_one():
    cluster = Cluster()
    server, worker = cluster.server(), cluster.worker()
    worker.declare()
    cluster.do(OrderAcked(server.stream, 2))
    assert worker.last(Formed) is None
    cluster.do(OrderAcked(server.stream, 1))
    assert worker.last(Formed).seed_them


def test_others_wait_for_the_chiefs_weights():
    cluster = Cluster()
    server, chief, other = cluster.server(), cluster.worker(), cluster.worker()
    chief.declare()
    other.declare()
    server.ack()
    assert chief.last(Formed).seed_them
    assert other.last(Formed) == Formed(2, chief.last(Formed).places, False, False)
    chief.seeded()
    assert other.last(Formed).seeded


def test_a_late_lower_session_does_not_unseat_the_chief_that_seeds():
    cluster = Cluster()
    server, late, chief = cluster.server(), cluster.worker(), cluster.worker()
    chief.declare()
    server.ack()
    assert chief.last(Formed).seed_them
    late.declare()
    server.ack()
    assert server.last(Members).sessions == (chief.session,)
    assert chief.seeded() == Done()
    server.ack()
    assert server.last(Members).sessions == (late.session, chief.session)
    assert late.last(Formed).seeded


def test_the_next_lowest_seeds_when_the_chief_dies():
    cluster = Cluster()
    server = cluster.server()
    chief, other = cluster.worker(), cluster.worker()
    chief.declare()
    other.declare()
    server.ack()
    cluster.wait(11, beating=[server, other])
    assert cluster.member_state(chief) is MemberState.DEAD
    assert not other.last(Formed).seed_them, "the server still takes the dead one for chief"
    server.ack()
    assert other.last(Formed).seed_them
    assert isinstance(chief.seeded(), LeaseLost)
    assert other.seeded() == Done()


def test_only_the_chief_marks_seeded_and_only_once_it_was_told():
    cluster = Cluster(servers=2)
    servers = [cluster.server(0), cluster.server(1)]
    chief, other = cluster.worker(), cluster.worker()
    chief.declare()
    other.declare()
    assert isinstance(chief.seeded(), NotYet)
    for server in servers:
        server.ack()
    assert "worker-1 is not to seed" in other.seeded().fact
    assert isinstance(chief.seeded(digests=[1]), InvalidMessage)
    assert chief.seeded() == Done()
    assert chief.seeded() == Done(), "a repeated call is answered alike"
    assert isinstance(other.seeded(), UsageError)


def test_a_server_that_dies_unseeded_is_replaced_and_seeded_anew():
    cluster = Cluster(servers=2)
    one, two = cluster.server(0), cluster.server(1)
    chief = cluster.worker()
    chief.declare()
    one.ack()
    two.ack()
    two.detach()
    cluster.wait(11, beating=[one, chief])
    assert cluster.state is RunState.FORMING
    assert cluster.status.waiting_for == "waiting 11 s for 1 of 2 servers (server-0 is here)"
    assert isinstance(chief.seeded(), NotYet), "half of the weights are gone"
    spare = cluster.server(5)
    spare.ack()
    assert [p.server for p in chief.last(Formed).places] == ["server-0", "server-5"]
    assert chief.last(Formed).seed_them
    assert chief.seeded() == Done()


def test_a_restarted_server_takes_its_slot_over_at_once_while_nothing_is_lost():
    cluster = Cluster()
    server, chief = cluster.server(0), cluster.worker()
    chief.declare()
    server.ack()
    server.detach()
    again = cluster.server(0)
    assert again.session != server.session
    again.ack()
    assert chief.seeded() == Done()


def test_further_servers_are_spares_and_are_told_nothing():
    cluster, _, _ = training(servers=1)
    spare = cluster.server(3)
    assert len(spare.heard) == 1
    assert cluster.member_state(spare) is MemberState.JOINING


def test_a_slot_has_one_server():
    cluster = Cluster()
    cluster.server(0, host="box", pid=7)
    second = cluster.server(0)
    assert isinstance(second.error, UsageError)
    assert second.error.who == "server-0"
    assert second.error.fact == "slot 0 is server-0's, which runs on box (pid 7)"
    assert "state folder" in second.error.todo


def test_another_model_is_refused_by_name():
    cluster, _, (first,) = training()
    joiner = cluster.worker()
    error = joiner.declare(spec=NARROW)
    assert isinstance(error, ModelMismatch)
    assert error.fact == (
        "fc.weight is [10, 512] here but [10, 256] on the cluster (set by worker-0)"
    )
    assert "hubring stop" in error.todo
    joiner.leave("ModelMismatch", error.fact)
    assert cluster.state is RunState.TRAINING
    assert cluster.member_state(joiner) is MemberState.DEAD
    assert first.train()


def test_other_settings_are_refused_field_by_field():
    cluster, _, _ = training()
    joiner = cluster.worker()
    error = joiner.declare(settings={"optimizer": "Adam"})
    assert isinstance(error, SettingsMismatch)
    assert error.fact == "optimizer is Adam here but SGD on the cluster (set by worker-0)"
    assert joiner.declare() == Done()
    error = joiner.declare_data(settings={"batch_size": "64", "seed": "1"})
    assert error.fact == "batch_size is 64 here but 32 on the cluster (set by worker-0)"
    error = joiner.declare_data(batches=7)
    assert error.fact == "batches an epoch is 7 here but 100 on the cluster (set by worker-0)"


def test_what_the_hub_cannot_hold_is_refused_before_it_binds():
    cluster = Cluster()
    worker = cluster.worker()
    odd = ModelSpec((ParamSpec("ids", (4,), (1,), "int64", 0),), "SGD")
    assert "ids is int64" in worker.declare(spec=odd).fact
    assert isinstance(worker.declare(spec=ModelSpec((), "SGD")), ModelMismatch)
    assert worker.declare() == Done()


def test_versions_and_runs_must_be_the_clusters():
    cluster = Cluster()
    error = cluster.worker(major=2).error
    assert isinstance(error, VersionMismatch)
    assert "version 2, the cluster version 1" in error.fact
    assert isinstance(cluster.worker(run="other").error, UsageError)
    assert isinstance(cluster.worker(run="other", session=4).error, RunEnded)
    assert cluster.worker(run="run-1", minor=0).error is None


def test_the_lowest_free_name_is_given():
    cluster = Cluster()
    first, second = cluster.worker(), cluster.worker()
    assert (first.name, second.name) == ("worker-0", "worker-1")
    cluster.wait(11, beating=[second])
    again = cluster.worker()
    assert (again.name, again.session) == ("worker-0", 3)


@pytest.mark.parametrize(
    ("arrive", "words"),
    [
        ([], "2 of 2 servers (none is here)"),
        ([0], "1 of 2 servers (server-0 is here)"),
        ([0, 1], "the first worker"),
    ],
)
def test_a_run_that_does_not_form_says_what_it_waited_for(arrive, words):
    cluster = Cluster(servers=2, forming_timeout=30)
    servers = [cluster.server(slot) for slot in arrive]
    cluster.wait(29.5, beating=servers)
    assert cluster.status.waiting_for == f"waiting 30 s for {words}"
    cluster.wait(0.5, beating=servers)
    status = cluster.status
    assert (status.state, status.kind) == (RunState.FAILED, "TimedOut")
    assert status.why == f"the run did not form: waiting 30 s for {words}"


def test_a_member_that_comes_and_goes_does_not_put_off_the_end_of_forming():
    cluster = Cluster(servers=2, forming_timeout=30)
    for _ in range(4):
        server = cluster.server(0)
        cluster.wait(9)
        server.detach()
    assert cluster.state is RunState.FAILED


def test_progress_renews_the_wait():
    cluster = Cluster(servers=1, forming_timeout=30)
    cluster.wait(25)
    server = cluster.server(0)
    cluster.wait(25, beating=[server])
    assert cluster.state is RunState.FORMING
    worker = cluster.worker()
    cluster.wait(25, beating=[server, worker])
    worker.declare()
    assert cluster.state is RunState.FORMING


def test_a_worker_alone_with_a_model_that_fits_nowhere_fails_the_run():
    cluster = Cluster()
    worker = cluster.worker()
    worker.leave("ModelMismatch", "ids is int64")
    status = cluster.status
    assert (status.state, status.who, status.kind) == (RunState.FAILED, "worker-0", "ModelMismatch")


def test_the_shards_orders_come_again_on_a_new_stream_until_acknowledged():
    cluster = Cluster()
    server, worker = cluster.server(), cluster.worker()
    worker.declare()
    server.detach()
    server.reattach()
    assert [type(order) for order in server.heard] == [Welcome, Install, Members]
    server.ack()
    server.detach()
    server.reattach()
    assert [type(order) for order in server.heard] == [Welcome, Members]
    assert server.hello.role is Role.SERVER


def test_an_order_that_was_not_given_ends_the_stream():

    cluster = Cluster()
    server = cluster.server()
    cluster.do(OrderAcked(server.stream, 99))
    assert isinstance(server.error, InvalidMessage)


def test_a_member_with_another_torch_is_let_in_and_named():
    cluster, _, (one,) = training()
    cluster.worker(torch="2.13.0")
    assert not [event for event in cluster.status.events if event.kind == "warning"]
    cluster.worker(torch="2.11.0")
    (warning,) = [event for event in cluster.status.events if event.kind == "warning"]
    assert warning.text.startswith("worker-2 runs torch 2.11.0, worker-1 torch 2.13.0")
    assert one.error is None
