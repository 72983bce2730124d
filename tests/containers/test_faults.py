"""What a run in containers makes of the faults that the host injects into them.

One long run bears them, a test each, in the order of this file; the last one reads its books.
Each begins with workers that train, whatever was before.
"""

import math
import os
import re
import shutil
import time
from datetime import UTC, datetime

import pytest
from containers.compose import Compose
from containers.faults import Faults
from containers.watched import Watched, dead, steps, training, workers
from examples import digits
from safetensors.torch import load_model

from hubring_common.messages import MemberState

LEASE = 6.0
LONG = "--epochs 100000"
INSIDE = ("--coordinator", "127.0.0.1:7077", "--token-file", "/run/hubring/token")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("nsenter", "iptables", "tc"))),
    reason="needs root, nsenter, iptables and tc",
)
pytestmark = [pytest.mark.containers, pytest.mark.timeout(300), needs_root]


@pytest.fixture(scope="module")
def cluster():
    yield from running("long", TIMEOUT=f"{LEASE:g}", ARGS=LONG)


def running(name, **environment):
    project = Compose(f"hubring-{name}-{os.getpid()}", **environment)
    project.down()
    try:
        project("up", "-d")
        with Watched(project) as watched:
            yield watched
    finally:
        project.down()


@pytest.fixture
def faults():
    injected = Faults()
    yield injected
    injected.mend()


def server(cluster):
    return cluster.compose("ps", "-q", "server").stdout.split()[0]


def wait_for_death(cluster, victim):
    """Why, as the coordinator says it."""
    return cluster.wait_for(lambda s: dead(s).get(victim.session), f"{victim.name} is given up")


def wait_for_return(cluster, victim):
    """Its container trains again, in a new session."""

    def is_back(status):
        return any(w.host == victim.host and w.worker.steps for w in training(status))

    cluster.wait_for(is_back, f"{victim.name} trains again")
    assert victim.session not in steps(cluster.status())


def test_workers_come_and_go_while_it_trains(cluster, record_property):
    cluster.up(workers=2)
    since, began = datetime.now(UTC), time.monotonic()
    cluster.up(workers=4)
    record_property("2 to 4, all train", f"{time.monotonic() - began:.1f} s")
    began = time.monotonic()
    cluster.up(workers=1)
    record_property("4 to 1", f"{time.monotonic() - began:.1f} s")
    assert cluster.exit_codes("worker", since) == [0, 0, 0]
    status = cluster.status()
    assert [w.state for w in workers(status)].count(MemberState.FINISHED) == 3
    assert sum("SIGTERM" in event.text for event in status.events) >= 3
    assert not dead(status)


@pytest.mark.parametrize("how", ["kill", "docker_kill"])
def test_a_killed_worker_is_missed_after_its_lease(cluster, faults, record_property, how):
    cluster.up(workers=2)
    since, began = datetime.now(UTC), time.monotonic()
    victim, other = training(cluster.status())
    getattr(faults, how)(victim.host)
    assert wait_for_death(cluster, victim).startswith("not heard for")
    seconds = time.monotonic() - began
    record_property("noticed", f"{seconds:.1f} s")
    assert LEASE - 1 < seconds < 2 * LEASE
    assert cluster.exit_codes("worker", since) == [137]
    cluster.wait_for_steps(cluster.status(), more=100)
    assert set(steps(cluster.status())) == {other.session}


def test_a_worker_that_stood_still_beyond_its_lease_joins_anew(cluster, faults, record_property):
    cluster.up(workers=2)
    victim, _ = training(cluster.status())
    faults.pause(victim.host)
    wait_for_death(cluster, victim)
    began = time.monotonic()
    faults.unpause(victim.host)
    wait_for_return(cluster, victim)
    record_property("trains again", f"{time.monotonic() - began:.1f} s")


def test_a_cut_shorter_than_the_lease_is_nothing(cluster, faults, record_property):
    cluster.up(workers=2)
    before = cluster.status()
    victim, _ = training(before)
    faults.cut(victim.host)
    time.sleep(LEASE / 2)
    began = time.monotonic()
    faults.join(victim.host)
    cluster.wait_for_steps(cluster.status())
    record_property("steps again", f"{time.monotonic() - began:.1f} s")
    assert set(steps(cluster.status())) == set(steps(before))


def test_a_cut_longer_than_the_lease_and_another_address(cluster, faults, record_property):
    cluster.up(workers=2)
    victim, _ = training(cluster.status())
    faults.cut(victim.host, address_is_taken=True)
    wait_for_death(cluster, victim)
    began = time.monotonic()
    faults.join(victim.host)
    wait_for_return(cluster, victim)
    record_property("trains again", f"{time.monotonic() - began:.1f} s")


def test_pushes_that_do_not_arrive_are_sent_again(cluster, faults, record_property):
    cluster.up(workers=2)
    before = cluster.status()
    victim, _ = training(before)
    faults.drop(victim.host, sent_to=server(cluster))
    time.sleep(1)  # what was under way has arrived
    during = steps(cluster.status())[victim.session]
    time.sleep(3)
    assert steps(cluster.status())[victim.session] <= during + 1
    began = time.monotonic()
    faults.undrop(victim.host)
    cluster.wait_for_steps(cluster.status())
    record_property("steps again", f"{time.monotonic() - began:.1f} s")
    assert set(steps(cluster.status())) == set(steps(before))


def test_a_slow_network_kills_nobody(cluster, faults, record_property):
    cluster.up(workers=2)
    before = cluster.status()
    late, _ = training(before)
    faults.delay(late.host, 0.1).narrow(server(cluster), "10mbit")
    time.sleep(1.5 * LEASE)
    after = cluster.status()
    took = {worker: step - steps(before)[worker] for worker, step in steps(after).items()}
    record_property("steps in 9 s", f"{took.pop(late.session)} late, {sum(took.values())} not")
    cluster.wait_for_steps(after)
    assert set(steps(cluster.status())) == set(steps(before))


def is_shared_out(status):
    """The status, if every batch of the epoch is with a worker: else they wait at its end."""
    return status if status.epochs[-1].left == 0 else None


def test_training_goes_on_while_the_coordinator_is_dead(cluster, faults, record_property):
    cluster.up(workers=2)
    since, before = datetime.now(UTC), cluster.wait_for(is_shared_out, "all batches are with one")
    faults.kill(cluster.compose("ps", "-q", "coordinator").stdout.strip())
    time.sleep(LEASE + 1)
    assert cluster.status() is None
    began = time.monotonic()
    cluster.compose("up", "-d", "--no-build", "--no-recreate", "coordinator")
    after = cluster.wait_for(lambda s: s if len(steps(s)) == 2 else None, "the workers are back")
    record_property("attended again", f"{time.monotonic() - began:.1f} s")
    took = sum(steps(after).values()) - sum(steps(before).values())
    record_property("steps meanwhile", took)
    assert after.boot == before.boot + 1
    assert set(steps(after)) == set(steps(before)), "a worker had to join anew"
    assert took > 200
    assert cluster.exit_codes("coordinator", since) == [137]
    cluster.wait_for_steps(after)


def test_the_books_of_it_all(cluster, record_property, tmp_path):
    cluster.up(workers=2)
    since = datetime.now(UTC)
    cluster.compose("exec", "-T", "coordinator", "python", "-m", "hubring", "stop", *INSIDE)
    wait_for_end(cluster)
    assert cluster.exit_codes("worker", since) == [0, 0]
    assert cluster.exit_codes("server", since) == [0, 0]
    assert cluster.exit_codes("coordinator", since) == [0]
    summary = cluster.summary(tmp_path)
    record_property("ledger", summary["ledger"])
    record_property("accuracy", summary["metrics"]["test_accuracy"])
    assert summary["state"] == "STOPPED"
    assert_whole_but_for_its_end(summary)
    assert summary["metrics"]["test_accuracy"] >= 0.96
    assert_model_is_the_one_that_was_measured(summary, tmp_path)


def wait_for_end(cluster, seconds=60):
    deadline = time.monotonic() + seconds
    while cluster.compose("ps", "-q").stdout.strip():
        assert time.monotonic() < deadline, cluster.compose("logs", "--tail", "20").stdout
        time.sleep(0.5)


def assert_whole_but_for_its_end(summary):
    """Each batch counted once; what the stop left untrained lies in the last two epochs."""
    counted, rest = summary["ledger"].split(" epochs counted, each once")
    done, of_all, epochs = map(int, re.findall(r"\d+", counted))
    assert [shard["progress"]["batches"] for shard in summary["shards"]] == [done, done]
    untrained = set(map(int, re.findall(r"of epoch (\d+)", rest)))
    assert untrained <= {epochs - 2, epochs - 1}, summary["ledger"]
    assert not re.search("shard|aside|more", rest)
    assert of_all == epochs * math.ceil(len(digits.data()[0]) / 32)


def assert_model_is_the_one_that_was_measured(summary, folder):
    (path,) = folder.glob("runs/*/model.safetensors")
    model = digits.cnn()
    load_model(model, path)
    _, test = digits.data()
    assert digits.accuracy(model, test) == pytest.approx(summary["metrics"]["test_accuracy"])


@pytest.fixture
def doomed(cluster):
    """Another project; the long one is over, and its containers have ended."""
    yield from running("lost", TIMEOUT="4", ARGS=LONG)


def test_a_killed_server_ends_the_run_with_words(doomed, faults, record_property, tmp_path):
    doomed.up(workers=2)
    since, began = datetime.now(UTC), time.monotonic()
    faults.kill(server(doomed))
    wait_for_end(doomed)
    record_property("all ended", f"{time.monotonic() - began:.1f} s")
    assert sorted(doomed.exit_codes("server", since)) == [0, 137]
    assert doomed.exit_codes("worker", since) == [24, 24]
    assert doomed.exit_codes("coordinator", since) == [24]
    summary = doomed.summary(tmp_path)
    assert summary["state"] == "FAILED"
    assert summary["kind"] == "WeightsLost"
    assert re.match(r"weights lost at LSN \d+: server-\d not heard for", summary["why"])
