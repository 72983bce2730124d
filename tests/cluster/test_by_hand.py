"""A cluster started process by process, as on several machines."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from cluster.command import TINY, finish, hubring, start, wait_for


@pytest.fixture
def place(tmp_path):
    """(folder, the options that name its cluster)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    token = str(tmp_path / "token")
    started = []

    def launch(*words):
        options = ("--token-file", token, "--timeout", "2")
        at = words.index("--") if "--" in words else len(words)  # the script's own follow it
        started.append(start(tmp_path, *words[:at], *options, *words[at:]))
        return started[-1]

    yield tmp_path, address, launch
    for process in started:
        process.kill()
        process.communicate()


def listens(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def begin(place, *more):
    """(coordinator, server), with the coordinator listening."""
    _, address, launch = place
    coordinator = launch("coordinator", "--bind", address, "--make-token", *more)
    wait_for(lambda: listens(address), "the coordinator listens")
    return coordinator, launch("server", "--coordinator", address)


def test_every_member_ends_with_code_0(place):
    folder, address, launch = place
    coordinator, server = begin(place, "--run-id", "by-hand")
    workers = [launch("worker", TINY, "--coordinator", address) for _ in range(2)]
    names = {"coordinator": coordinator, "server": server}
    names |= {f"worker {i}": worker for i, worker in enumerate(workers)}
    results = {name: finish(process) for name, process in names.items()}
    assert {name: done.returncode for name, done in results.items()} == dict.fromkeys(names, 0)
    summary = json.loads((folder / "runs" / "by-hand" / "summary.json").read_text())
    assert summary["state"] == "FINISHED"
    assert [e["done"] for e in summary["epochs"]] == [30, 30]
    assert (folder / "runs" / "by-hand" / "model.safetensors").is_file()
    assert "the model lies in" in results["coordinator"].stderr


def test_hubring_worker_starts_a_script_again_that_was_killed(place):
    folder, address, launch = place
    coordinator, _ = begin(place)
    mark = str(folder / "killed")
    worker = launch("worker", TINY, "--coordinator", address, "--", "--kill-once", mark)
    done = finish(worker)
    assert done.returncode == 0, done.stderr
    assert "SIGKILL" in done.stderr and "starting it again" in done.stderr
    assert finish(coordinator).returncode == 0


def test_a_joiner_finds_what_is_done_and_helps_with_the_rest(place):
    folder, address, launch = place
    begin(place, "--run-id", "joined")
    mark = folder / "stepped"
    slow = ("--", "--epochs", "3", "--pause", "0.1", "--mark", str(mark))
    first = launch("worker", TINY, "--coordinator", address, *slow)
    wait_for(mark.exists, "the first step")
    second = launch("worker", TINY, "--coordinator", address, *slow[:5])
    assert finish(first).returncode == finish(second).returncode == 0
    wait_for((folder / "runs" / "joined" / "model.safetensors").is_file, "the model")
    summary = json.loads((folder / "runs" / "joined" / "summary.json").read_text())
    workers = [m["worker"] for m in summary["members"] if m["role"] == "WORKER"]
    assert sum(w["samples"] for w in workers) == 720
    assert all(w["steps"] > 0 for w in workers)


def test_a_run_that_is_over_is_archived_and_a_new_one_begins(place):
    folder, address, launch = place
    for _ in range(2):
        coordinator, server = begin(place)
        worker = launch("worker", TINY, "--coordinator", address)
        codes = [finish(process).returncode for process in (worker, server, coordinator)]
        assert codes == [0, 0, 0]
    assert len(list(folder.glob("runs/*/model.safetensors"))) == 2


def test_a_server_that_dies_ends_the_run_with_words(place):
    folder, address, launch = place
    coordinator, server = begin(place)
    mark = folder / "stepped"
    slow = ("--", "--epochs", "500", "--pause", "0.02", "--mark", str(mark))
    worker = launch("worker", TINY, "--coordinator", address, *slow)
    wait_for(mark.exists, "the first step")
    began = time.monotonic()
    server.kill()
    results = [finish(worker), finish(coordinator)]
    assert time.monotonic() - began < 20
    assert [done.returncode for done in results] == [24, 24]
    assert "weights lost at LSN" in results[0].stderr
    assert "weights lost at LSN" in results[1].stderr


def test_status_of_a_running_cluster(place):
    folder, address, launch = place
    begin(place)
    mark = folder / "stepped"
    slow = ("--", "--epochs", "500", "--pause", "0.02", "--mark", str(mark))
    launch("worker", TINY, "--coordinator", address, *slow)
    wait_for(mark.exists, "the first step")
    where = ("--coordinator", address, "--token-file", str(folder / "token"))
    shown = json.loads(hubring(folder, "status", *where, "--json").stdout)
    assert shown["state"] == "TRAINING"
    assert {m["name"] for m in shown["members"]} == {"server-0", "worker-0"}
    assert shown["epochs"][0]["batches"] == 30
    words = hubring(folder, "status", *where).stdout
    assert "training" in words and "server-0" in words and "epoch" in words


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_worker_that_slept_through_its_lease_is_fenced_and_joins_anew(place):
    folder, address, launch = place
    coordinator, _ = begin(place, "--run-id", "slept")
    mark = folder / "stepped"
    slow = ("--", "--epochs", "2", "--pause", "0.05", "--mark", str(mark))
    worker = launch("worker", TINY, "--coordinator", address, *slow)
    wait_for(mark.exists, "the first step")
    # Else the run would end while the only worker's script is started again.
    other = launch("worker", TINY, "--coordinator", address, *slow[:2], "2", "--pause", "0.2")
    (script,) = children_of(worker.pid)
    os.kill(script, signal.SIGSTOP)
    where = ("--coordinator", address, "--token-file", str(folder / "token"))

    def is_dead():
        shown = json.loads(hubring(folder, "status", *where, "--json").stdout)
        return any(m["name"] == "worker-0" and m["state"] == "DEAD" for m in shown["members"])

    wait_for(is_dead, "its lease ends")
    os.kill(script, signal.SIGCONT)
    done = finish(worker)
    assert done.returncode == 0, done.stderr
    assert "exit code 11" in done.stderr and "starting it again" in done.stderr
    assert finish(other).returncode == finish(coordinator).returncode == 0
    summary = json.loads((folder / "runs" / "slept" / "summary.json").read_text())
    assert [e["done"] for e in summary["epochs"]] == [30, 30]
