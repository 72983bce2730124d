"""What becomes of the data when processes die: by the ledger, and by the servers' own count."""

import json
import os
import signal
import time

import pytest
from cluster.command import SCRIPTS, TINY, finish, hubring, wait_for
from cluster.test_by_hand import begin, children_of, listens, place

__all__ = ["place"]
DIES = str(SCRIPTS / "dies.py")
ONCE = "each once"


def summary_of(folder, run):
    return json.loads((folder / "runs" / run / "summary.json").read_text())


def told(folder, address, *words):
    where = ("--coordinator", address, "--token-file", str(folder / "token"), "--json")
    return json.loads(hubring(folder, "status", *words, *where).stdout)


@pytest.mark.parametrize("phase", ["before", "one", "all"])
def test_a_worker_killed_in_a_push_costs_no_batch_and_doubles_none(tmp_path, phase):
    mark = tmp_path / "died"
    arguments = ("--timeout", "2", "--json", "--", phase, str(mark))
    done = hubring(tmp_path, "run", DIES, *arguments)
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    assert "SIGKILL" in done.stderr
    (summary,) = tmp_path.glob("runs/*/summary.json")
    shown = json.loads(summary.read_text())
    assert shown["ledger"] == "60 of 60 batches of 2 epochs counted, each once"
    assert [shard["progress"]["batches"] for shard in shown["shards"]] == [60, 60]


def test_a_sample_that_kills_every_worker_is_set_aside_and_named(tmp_path):
    arguments = ("--timeout", "4", "--json", "--", "deadly", "100", "--epochs", "1")
    done = hubring(tmp_path, "run", DIES, *arguments)
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.glob("runs/*/summary.json")
    shown = json.loads(summary.read_text())
    (aside,) = shown["set_aside"]
    assert len(aside["workers"]) == 3
    assert f"batch {aside['batch']} of epoch 0 was set aside" in shown["ledger"]
    assert "29 of 30 batches" in shown["ledger"]
    assert f"batch {aside['batch']} of epoch 0 was set aside" in done.stderr


def test_training_goes_on_while_the_coordinator_is_dead_and_nothing_is_lost(place):
    folder, address, launch = place
    coordinator, _ = begin(place, "--run-id", "outage")
    mark = folder / "stepped"
    slow = ("--", "--epochs", "40", "--pause", "0.02", "--mark", str(mark))
    workers = [launch("worker", TINY, "--coordinator", address, *slow) for _ in range(2)]
    wait_for(mark.exists, "the first step")
    wait_for(lambda: told(folder, address)["epochs_done"] >= 3, "three epochs")
    before = steps(told(folder, address))
    coordinator.kill()
    coordinator.wait()
    time.sleep(6)  # the outage itself
    again = launch("coordinator", "--bind", address)
    wait_for(lambda: listens(address), "the coordinator listens again")
    shown = wait_for(lambda: attended(told(folder, address)), "the members are back")
    assert steps(shown) - before > 60, "they stopped at the end of the epoch, 30 batches"
    assert shown["boot"] == 2
    assert [finish(worker).returncode for worker in workers] == [0, 0]
    assert finish(again).returncode == 0
    ended = summary_of(folder, "outage")
    assert ended["ledger"] == "1200 of 1200 batches of 40 epochs counted, each once"
    assert {m["state"] for m in ended["members"]} == {"FINISHED"}


def steps(status):
    return sum(m["worker"]["steps"] for m in status["members"] if m["worker"])


def attended(status):
    workers = [m for m in status["members"] if m["role"] == "WORKER"]
    return status if all(m["worker"] for m in workers) else None


def test_a_coordinator_killed_while_the_cluster_forms_goes_on_from_there(place):
    folder, address, launch = place
    coordinator = launch("coordinator", "--bind", address, "--make-token", "--run-id", "forming")
    wait_for(lambda: listens(address), "the coordinator listens")
    worker = launch("worker", TINY, "--coordinator", address)
    wait_for(lambda: told(folder, address)["members"], "the worker has joined")
    coordinator.kill()
    coordinator.wait()
    again = launch("coordinator", "--bind", address)
    server = launch("server", "--coordinator", address)
    assert [finish(process).returncode for process in (worker, server, again)] == [0, 0, 0]
    assert ONCE in summary_of(folder, "forming")["ledger"]


def test_a_worker_that_is_told_to_end_gives_its_batches_back_at_once(place):
    folder, address, launch = place
    begin(place, "--run-id", "scaled")
    slow = ("--", "--epochs", "6", "--pause", "0.05")
    first, second = (launch("worker", TINY, "--coordinator", address, *slow) for _ in range(2))
    wait_for(lambda: len(training(told(folder, address))) == 2, "both train")
    began = time.monotonic()
    first.send_signal(signal.SIGTERM)
    assert finish(first).returncode == 0
    assert time.monotonic() - began < 2, "it waited for its lease or for the others"
    shown = told(folder, address)
    assert "SIGTERM" in json.dumps([event["text"] for event in shown["events"]])
    assert finish(second).returncode == 0
    wait_for((folder / "runs" / "scaled" / "model.safetensors").is_file, "the model")
    ended = summary_of(folder, "scaled")
    assert ended["ledger"] == "180 of 180 batches of 6 epochs counted, each once"
    assert not any("dead" in event["text"] for event in ended["events"])


def training(status):
    return [m for m in status["members"] if m["state"] == "ACTIVE" and m["role"] == "WORKER"]


def test_drain_and_stop_by_command(place):
    folder, address, launch = place
    coordinator, _ = begin(place, "--run-id", "stopped")
    slow = ("--", "--epochs", "500", "--pause", "0.02")
    workers = [launch("worker", TINY, "--coordinator", address, *slow) for _ in range(2)]
    wait_for(lambda: len(training(told(folder, address))) == 2, "both train")
    where = ("--coordinator", address, "--token-file", str(folder / "token"))
    unknown = hubring(folder, "drain", "worker-7", *where)
    assert unknown.returncode == 2
    assert "no live worker is named 'worker-7'; there are worker-0, worker-1" in unknown.stderr
    assert hubring(folder, "drain", "worker-1", *where, "--why", "for repairs").returncode == 0
    wait_for(lambda: len(training(told(folder, address))) == 1, "one trains on")
    assert hubring(folder, "stop", *where, "--why", "enough").returncode == 0
    assert [finish(process).returncode for process in (*workers, coordinator)] == [0, 0, 0]
    ended = summary_of(folder, "stopped")
    assert (ended["state"], ended["why"]) == ("STOPPED", "enough")
    assert (folder / "runs" / "stopped" / "model.safetensors").is_file()


def test_the_ledger_of_a_running_cluster(place):
    folder, address, launch = place
    begin(place)
    slow = ("--", "--epochs", "500", "--pause", "0.02")
    launch("worker", TINY, "--coordinator", address, *slow)
    wait_for(lambda: told(folder, address)["epochs_done"] >= 2, "two epochs")
    first = told(folder, address, "--ledger")["epochs"][0]
    assert (first["batches"], first["missing"]) == (30, [])
    assert sum(entry["count"] for entry in first["entries"]) == 30
    assert {entry["worker"] for entry in first["entries"]} == {"worker-0"}
    assert all(entry["taken"] <= entry["done"] for entry in first["entries"])
    where = ("--coordinator", address, "--token-file", str(folder / "token"))
    words = hubring(folder, "status", "--ledger", *where).stdout
    assert "worker-0" in words and "0-29" in words


def test_a_worker_stopped_for_less_than_its_lease_is_not_missed(place):
    folder, address, launch = place
    coordinator, _ = begin(place, "--run-id", "napped")
    mark = folder / "stepped"
    slow = ("--", "--epochs", "3", "--pause", "0.05", "--mark", str(mark))
    worker = launch("worker", TINY, "--coordinator", address, *slow)
    wait_for(mark.exists, "the first step")
    (script,) = children_of(worker.pid)
    os.kill(script, signal.SIGSTOP)
    time.sleep(1)
    os.kill(script, signal.SIGCONT)
    assert finish(worker).returncode == 0
    assert finish(coordinator).returncode == 0
    ended = summary_of(folder, "napped")
    assert [m["state"] for m in ended["members"] if m["role"] == "WORKER"] == ["FINISHED"]
    assert ended["ledger"] == "90 of 90 batches of 3 epochs counted, each once"
