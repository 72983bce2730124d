"""What every process has: addresses, the ops port, log lines, the lifeline, one timeout."""

import io
import json
import logging
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from common.roads import eventually
from hypothesis import given, settings
from hypothesis import strategies as st

from hubring_common import logs, net
from hubring_common.errors import TimedOut, Unreachable, UsageError
from hubring_common.lifeline import ORPHAN_EXIT, LifelineOwner
from hubring_common.ops import OpsServer, as_json
from hubring_common.timing import Timing

# --- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "host", "host:", "host:port", "host:70000", ":-1", "h:1²"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="HOST:PORT"):
        net.split(text)


def test_addresses():
    assert net.split("host:80") == ("host", 80)
    assert net.split("[::1]:80") == ("::1", 80)
    assert net.split(":80") == ("", 80)


@settings(deadline=None)
@given(st.sampled_from(["host", "10.0.0.1", "::1", "fe80::1"]), st.integers(0, 65535))
def test_a_joined_address_is_split_again(host, port):
    assert net.split(net.joined(host, port)) == (host, port)


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        ("127.0.0.5:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("10.0.0.1:1", False),
        ("[::]:1", False),
        (":1", False),
        ("127.example.com:1", False),
        ("localhost.example.com:1", False),
    ],
)
def test_only_this_machine_is_loopback(address, is_loopback):
    assert net.is_loopback(address) is is_loopback


def test_plaintext_beyond_this_machine_is_asked_for_by_name():
    net.require_private("127.0.0.1:1", plaintext=False)
    net.require_private("0.0.0.0:1", plaintext=True)
    with pytest.raises(UsageError, match="--plaintext"):
        net.require_private("0.0.0.0:1", plaintext=False)


def test_a_member_advertises_the_address_that_routes_to_the_coordinator():
    assert net.advertised("127.0.0.2:0", 5, "127.0.0.1:7077") == "127.0.0.2:5"
    assert net.advertised("0.0.0.0:0", 5, "127.0.0.1:7077") == "127.0.0.1:5"
    assert net.advertised(":0", 5, "127.0.0.1:7077") == "127.0.0.1:5"
    assert net.advertised("[::1]:0", 5, "127.0.0.1:7077") == "[::1]:5"


def test_a_coordinator_whose_name_has_no_address_is_unreachable():
    with pytest.raises(Unreachable, match=r"no way to nobody\.invalid:7077 from here"):
        net.advertised("0.0.0.0:0", 5, "nobody.invalid:7077")


# --- the ops port ------------------------------------------------------------------------------


def fetch(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_ops_port():
    ready = [(False, "no shard yet")]
    pages = {"/status.json": lambda: as_json({"run": "a-run"})}
    server = OpsServer("127.0.0.1:0", lambda: ready[0], pages)
    assert fetch(server.port, "/healthz") == (200, "ok\n")
    assert fetch(server.port, "/readyz") == (503, "no shard yet\n")
    ready[0] = (True, "")
    assert fetch(server.port, "/readyz") == (200, "ready\n")
    assert json.loads(fetch(server.port, "/status.json")[1]) == {"run": "a-run"}
    assert "python_info" in fetch(server.port, "/metrics")[1]
    assert fetch(server.port, "/other")[0] == 404
    with pytest.raises(UsageError, match="cannot serve the ops port"):
        OpsServer(f"127.0.0.1:{server.port}", lambda: ready[0])
    server.close()


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "x", "127.0.0.1:abc", "203.0.113.7:0"])
def test_an_ops_address_that_cannot_be_is_refused(address):
    with pytest.raises(UsageError):
        OpsServer(address, lambda: (True, ""))


def test_the_ops_port_is_free_again_and_had_no_status_to_show():
    server = OpsServer("127.0.0.1:0", lambda: (True, ""))
    assert fetch(server.port, "/status.json")[0] == 404
    server.close()
    OpsServer(f"127.0.0.1:{server.port}", lambda: (True, "")).close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ops"]


def test_who_hangs_up_early_or_sends_rubbish_disturbs_nobody(capfd):
    server = OpsServer("127.0.0.1:0", lambda: (True, ""))
    for sent in (
        b"",
        b"GET /met",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01rubbish\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), 5) as client:
            client.sendall(sent)
            reset = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    assert fetch(server.port, "/healthz") == (200, "ok\n")
    eventually(lambda: not [t for t in threading.enumerate() if "request" in t.name], "it hangs")
    server.close()
    assert capfd.readouterr().err == ""


# --- log lines ---------------------------------------------------------------------------------


@pytest.fixture
def log():
    yield logging.getLogger("hubring_worker.test")
    for package in logs.PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def test_a_line_is_one_json_object(log):
    sink = io.StringIO()
    logs.configure("worker-3", stream=sink)
    try:
        raise ValueError("bad\nluck")
    except ValueError:
        log.exception("step %d", 5)
    log.debug("unseen")
    (line,) = sink.getvalue().splitlines()
    shown = json.loads(line)
    assert (shown["member"], shown["level"], shown["message"]) == ("worker-3", "error", "step 5")
    assert "ValueError: bad" in shown["traceback"]
    assert shown["time"].endswith("Z")


@settings(deadline=None)
@given(st.text(), st.text())
def test_whatever_is_said_is_one_line_that_says_it(member, said):
    record = logging.LogRecord("hubring", logging.INFO, "", 0, "%s", (said,), None)
    line = logs.JsonLines(member).format(record)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert (json.loads(line)["member"], json.loads(line)["message"]) == (member, said)


def test_every_package_speaks_once_and_others_do_not(log):
    first, sink = io.StringIO(), io.StringIO()
    logs.configure("worker-3", stream=first)
    logs.configure("worker-3", level="warning", stream=sink)
    for package in (*logs.PACKAGES, "hubringlike"):
        logging.getLogger(f"{package}.inner").warning(package)
        logging.getLogger(f"{package}.inner").info("unseen")
    said = [json.loads(line)["message"] for line in sink.getvalue().splitlines()]
    assert said == list(logs.PACKAGES)
    assert first.getvalue() == ""


def test_the_time_of_a_line_is_utc():
    record = logging.LogRecord("hubring", logging.INFO, "", 0, "", (), None)
    record.created, record.msecs = 0.007, 7.0
    assert json.loads(logs.JsonLines("it").format(record))["time"] == "1970-01-01T00:00:00.007Z"


def test_a_line_is_readable_on_a_terminal_or_on_request(log):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        logs.configure("worker-3", stream=terminal)
        log.info("step %d", 5)
        terminal.flush()
        assert os.read(ours, 200).decode().split(maxsplit=1)[1] == "worker-3 INFO step 5\r\n"
    os.close(ours)
    sink = io.StringIO()
    logs.configure("worker-3", style="readable", stream=sink)
    log.info("step 6")
    assert sink.getvalue().endswith("worker-3 INFO step 6\n")


# --- the lifeline ------------------------------------------------------------------------------

CHILD = """
import sys, time
from hubring_common.lifeline import Lifeline
line = Lifeline(int(sys.argv[1]))
line.announce("127.0.0.1:5 here")
print("up", flush=True)
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys, time
from hubring_common.lifeline import LifelineOwner
owner = LifelineOwner()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(owner.child_fd)],
                         pass_fds=(owner.child_fd,), stdout=subprocess.PIPE)
owner.started()
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def spawn(code, owner):
    command = [sys.executable, "-c", code, str(owner.child_fd)]
    child = subprocess.Popen(command, pass_fds=(owner.child_fd,), stdout=subprocess.DEVNULL)
    owner.started()
    return child


def test_a_child_says_where_it_listens_and_ends_with_its_owner():
    owner = LifelineOwner()
    child = spawn(CHILD, owner)
    assert owner.announcement("it", 10) == "127.0.0.1:5 here"
    owner.close()
    assert child.wait(10) == ORPHAN_EXIT


def test_a_child_that_ends_before_it_is_ready():
    owner = LifelineOwner()
    child = spawn("", owner)
    with pytest.raises(Unreachable, match="server-0 ended before it was ready"):
        owner.announcement("server-0", 10)
    child.wait(10)
    owner.close()


def test_a_child_that_does_not_start_in_time():
    owner = LifelineOwner()
    child = spawn("import time; time.sleep(60)", owner)
    with pytest.raises(TimedOut, match="server-0 did not start within 0 s"):
        owner.announcement("server-0", 0.2)
    child.kill()
    child.wait(10)
    owner.close()


def test_kill_9_of_the_launcher_ends_the_child_though_its_word_was_never_read():
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, CHILD], stdout=subprocess.PIPE, text=True
    )
    child = int(launcher.stdout.readline())
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate()
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline, "the child outlives its launcher"
        time.sleep(0.02)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


# --- one timeout -------------------------------------------------------------------------------


def test_every_wait_follows_from_one_timeout():
    timing = Timing(10)
    assert (timing.heartbeat, timing.lease, timing.call(5_000_000)) == (1, 10, 25)


@settings(deadline=None)
@given(st.floats(0.2, 3600), st.integers(0, 10**12))
def test_waits_keep_their_order(timeout, payload):
    timing = Timing(timeout)
    assert 0 < timing.heartbeat < timing.lease < timing.call() <= timing.call(payload)


@pytest.mark.parametrize("timeout", [0, 0.1, -1, 4000, float("nan"), float("inf")])
def test_a_timeout_that_cannot_be_meant(timeout):
    with pytest.raises(UsageError, match="timeout is"):
        Timing(timeout)
