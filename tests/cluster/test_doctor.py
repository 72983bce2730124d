"""`hubring doctor` as a process: on this machine alone, and towards coordinators of every kind."""

import json
import socket
import time

import pytest
from cluster.command import hubring, processes_of
from whole import cluster

from hubring.tokens import write_token
from hubring_common import rpc
from hubring_common.errors import VersionMismatch
from hubring_common.messages import RunState, Status


def doctor(folder, *words):
    """(exit code, about -> finding) of `hubring doctor`."""
    done = hubring(folder, "doctor", *words, "--json")
    shown = json.loads(done.stdout)
    assert shown["exit_code"] == done.returncode
    assert not processes_of(folder)
    return done.returncode, {each["about"]: each for each in shown["findings"]}


def token(folder, text="a-token"):
    file = folder / "token"
    write_token(file)
    file.write_text(text + "\n")
    return str(file)


def test_a_fresh_machine(tmp_path):
    began = time.monotonic()
    code, found = doctor(tmp_path)
    assert time.monotonic() - began < 10  # 5 s on a machine that does nothing else
    assert code == 0
    assert {"torch build", "cores", "/dev/shm", "address", "port 7077", "token"} <= found.keys()
    assert "loaded in" in found["torch build"]["fact"]
    words = hubring(tmp_path, "doctor").stdout
    assert "checks: no problems" in words and "\x1b" not in words


def test_a_coordinator_that_can_be_used(tmp_path):
    with cluster(tmp_path / "its", servers=1) as whole:
        code, found = doctor(tmp_path, whole.address, "--token-file", token(tmp_path))
        assert code == 0
        assert "is forming, " in found["run"]["fact"]
        assert found["round trip"]["fact"].endswith("median of 20 calls")
        assert found["version"]["fact"].startswith("it speaks version 1")
        assert "towards" in found["address"]["fact"]
        run = whole.join()
        assert run.worker == "worker-0"  # the doctor was no member


def test_nobody_answers(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code, found = doctor(tmp_path, f"127.0.0.1:{closed.getsockname()[1]}")
    assert code == 10
    assert "Connection refused" in found["connect"]["fact"]


def test_something_else_answers(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, found = doctor(tmp_path, address, "--token-file", token(tmp_path))
    assert code == 10
    assert found["run"]["grade"] == "problem"


@pytest.mark.parametrize("given", ["wrong", "none", "missing"])
def test_a_token_that_does_not_fit(tmp_path, given):
    file = tmp_path / "no-such" if given == "missing" else token(tmp_path, "another")
    words = () if given == "none" else ("--token-file", str(file))
    with cluster(tmp_path / "its", servers=1) as whole:
        code, _ = doctor(tmp_path, whole.address, *words)
    assert code == 22


def test_another_version(tmp_path):
    def attend(requests, context):
        raise VersionMismatch("this member speaks version 1, the cluster version 2")

    other = rpc.make_server("a-token", 8)
    status = Status("a-run", RunState.TRAINING, "async")
    rpc.add_control(other, "Coordinator", {"Attend": attend, "GetStatus": lambda _: status})
    address = f"127.0.0.1:{rpc.bind(other, '127.0.0.1:0')}"
    other.start()
    try:
        code, found = doctor(tmp_path, address, "--token-file", token(tmp_path))
    finally:
        other.stop(0).wait()
    assert code == 20
    assert any("the cluster version 2" in each["fact"] for each in found.values())
